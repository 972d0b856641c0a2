"""`flux backup` and `flux restore`: all that the services keep, into a folder and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.command import command
from cli.failures import Failure, Status
from cli.session import Session, settings_failures


def add_to(app: typer.Typer) -> None:
    command(app, "backup", speaks=False)(backup)
    command(app, "restore", speaks=False)(restore)


def backup(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet, or empty.")],
    with_images: Annotated[
        bool, typer.Option("--with-images", help="The pictures of the jobs, too.")
    ] = False,
) -> None:
    """Write databases, LoRAs, settings and keys into a folder. The services may run meanwhile."""
    from api.version import VERSION
    from utils.backup.making import make
    from utils.backup.manifest import DATA
    from utils.backup.places import Places
    from utils.clock import rfc3339, utc_now

    with _failures():
        places = Places.of_this_machine()
        made = make(
            folder,
            places,
            now=rfc3339(utc_now()),
            version=VERSION,
            with_images=with_images,
            tell=session.say,
        )
    on_server = _on_server(places.environ)
    if on_server:
        session.say(
            f"NOT in it: a fleet's jobs and pictures, which are in {on_server}; its own program copies them while "
            "the front doors run: pg_dump --format=custom --file=fleet.dump (docs/fleet.md)"
        )
    if session.as_json:
        session.emit(
            {
                "folder": str(folder.resolve()),
                "not_included": on_server,
                "files": len(made.files),
                "size_bytes": made.size_bytes,
                "schemas": dict(made.schemas),
                "data_folders": [str(path) for path in places.folders(DATA)],
                "pictures_gone": list(made.gone),
            }
        )
        return
    print(f"{folder}: {len(made.files)} files, {made.size_bytes / 2**20:.1f} MiB")
    if not made.schemas:
        where = ", ".join(map(str, places.folders(DATA)))
        session.say(
            f"no database was in {where}: if the services keep theirs elsewhere, as those of systemd in /var/lib/flux-api, "
            "say so by FLUX_DATA_DIR, FLUX_LORA_DIR and FLUX_OUTPUT_DIR (docs/cli.md)"
        )
    if made.gone:
        session.say(f"{len(made.gone)} pictures of jobs were not in the output folder any more")
    session.say("It holds settings and keys in readable form: keep it where only you can read it.")


def _on_server(environ: Mapping[str, str]) -> str | None:
    """The database that a fleet of this machine keeps its jobs in, without its password; None where it is a file."""
    from config.settings import load_settings
    from models.precision import FLEET

    url = load_settings(FLEET.name, environ).fleet.database_url.get_secret_value()
    if not url:
        return None
    from utils.database.postgres import shown

    return shown(url)


def restore(
    session: Session,
    folder: Annotated[
        Path | None, typer.Argument(help="What ./flux backup wrote.", show_default=False)
    ] = None,
    without_settings: Annotated[
        bool, typer.Option("--without-settings", help="Leave .env and the TOML files as they are.")
    ] = False,
    cancel_waiting: Annotated[
        bool,
        typer.Option("--cancel-waiting", help="Jobs that waited or ran then are not drawn now."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, change nothing.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Go back where a restore was cut off, and do no more.")
    ] = False,
) -> None:
    """Check a backup and put it back, all of it or nothing. The services must rest; what it replaces is kept aside."""
    from utils.backup import restoring
    from utils.backup.places import Places
    from utils.clock import rfc3339, utc_now

    if undo == (folder is not None):
        raise Failure(Status.USAGE, "name the folder of a backup, or --undo without one")
    if undo:
        with _failures():
            count = restoring.undo_cut_off(Places.of_this_machine(), session.say)
        if session.as_json:
            session.emit({"undone": count})
        else:
            print("gone back" if count else "no restore was cut off: nothing to undo")
        return
    assert folder is not None
    now = utc_now()
    with _failures():
        done = restoring.restore(
            folder,
            stamp=now.strftime("%Y%m%dT%H%M%SZ"),
            now=rfc3339(now),
            tell=session.say,
            with_settings=not without_settings,
            cancel_waiting=cancel_waiting,
            dry_run=dry_run,
        )
    if session.as_json:
        session.emit(
            {
                "dry_run": dry_run,
                "made_at": done.manifest.made_at,
                "version": done.manifest.version,
                "files": len(done.manifest.files),
                "kept_aside": list(done.asides),
                "kept_settings": list(done.kept_settings),
                "waiting_jobs": done.waiting,
                "waiting_in_clouds": done.waiting_in_clouds,
            }
        )
        return
    word = "can be put back" if dry_run else "is back"
    print(f"the backup of {done.manifest.made_at} (version {done.manifest.version}) {word}")
    for path in done.asides:
        session.say(f"what was there before: {path}")
    for path in done.kept_settings:
        session.say(f"{path} is not in the backup and stays")
    if done.waiting:
        clouds = f", {done.waiting_in_clouds} of them by BFL's cloud, which charges" * bool(
            done.waiting_in_clouds
        )
        session.say(
            f"{done.waiting} jobs waited when it was made, and are drawn when the services start{clouds} "
            "(--cancel-waiting ends them)"
        )


@contextmanager
def _failures() -> Iterator[None]:
    from utils.backup.manifest import BackupError

    try:
        with settings_failures():
            yield
    except BackupError as error:
        raise Failure(Status.WRONG, str(error), code="backup") from error
