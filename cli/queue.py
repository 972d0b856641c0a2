"""`flux queue`: jobs that wait, run and have ended, and the line as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import files
from cli.command import command, group
from cli.complete import job_ids
from cli.failures import Failure, Status, usage
from cli.session import Session

if TYPE_CHECKING:
    from cli.client import Client

PROMPT_CHARACTERS = 48
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.", autocompletion=job_ids)]
JobIds = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="Ids of jobs.", autocompletion=job_ids)
]


def add_to(app: typer.Typer) -> None:
    below = group(app, "queue", "Jobs: see, watch, cancel, fetch their pictures.")
    command(below, "list")(list_jobs)
    command(below, "show")(show)
    command(below, "watch")(watch)
    command(below, "fetch")(fetch)
    command(below, "cancel")(cancel)
    command(below, "retry")(retry)
    command(below, "pause")(pause)
    command(below, "resume")(resume)
    command(below, "clear")(clear)


def list_jobs(
    session: Session,
    status: Annotated[
        str | None, typer.Option("--status", help=f"One of {', '.join(STATUSES)}.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Jobs of each service.")] = 20,
) -> None:
    """Jobs, newest first, of every service that answers."""
    query = {"limit": limit} if status is None else {"limit": limit, "status": status}
    report = []
    with session.clients() as clients:
        for client in clients:
            jobs = client.ask("GET", "/jobs", params=query)["jobs"]
            queue = client.ask("GET", "/queue")
            line = {name: queue[name] for name in ("paused", "held", "queued", "max_queue_size")}
            report.append({"service": client.name, "url": client.url, **line, "jobs": jobs})
    if session.as_json:
        session.emit({"services": report})
        return
    for each in report:
        held = f", held: {each['held']}" if each["held"] else ", paused" if each["paused"] else ""
        session.say(
            f"{each['service']}: {each['queued']} of {each['max_queue_size']} waiting{held}"
        )
    rows = [_row(each["service"], job) for each in report for job in each["jobs"]]
    session.table(("service", "job", "status", "", "model", "prompt"), rows, "no jobs")


def _row(service: str, job: dict[str, Any]) -> tuple[Any, ...]:
    progress = job["progress"] or {}
    where = (
        f"number {job['position']}"
        if job["position"] is not None
        else (
            f"step {progress['step']} of {progress['steps']}"
            if progress.get("steps")
            else (job["error"] or {}).get("code", "")
        )
    )
    prompt = job["request"]["prompt"]
    if len(prompt) > PROMPT_CHARACTERS:
        prompt = prompt[: PROMPT_CHARACTERS - 1] + "…"
    return service, job["id"], job["status"], where, job["request"]["model"], prompt


def show(session: Session, job_id: JobId) -> None:
    """All there is to say of a job."""
    with session.clients() as clients:
        client, job = _find(clients, job_id)
        if session.as_json:
            session.emit({**job, "service": client.name})
            return
        request, result, error = job["request"], job["result"], job["error"]
        facts = [
            ("job", job["id"]),
            ("service", client.name),
            ("status", job["status"]),
            ("prompt", request["prompt"]),
            ("model", request["model"]),
            ("size", f"{request['width']}x{request['height']}"),
            ("steps", request["num_inference_steps"]),
            ("seed", request["seed"]),
            ("created", job["created_at"]),
            ("started", job["started_at"]),
            ("ended", job["finished_at"]),
            ("attempts", job["attempts"]),
        ]
        if result:
            facts += [("picture", f"{client.url}{each['image_url']}") for each in result["images"]]
        if error:
            facts.append(("error", f"{error['code']}: {error['message']}"))
        session.table(("", ""), [fact for fact in facts if fact[1] is not None], "")


def watch(
    session: Session,
    job_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]", help="Until it ends. Left out: everything.", autocompletion=job_ids
        ),
    ] = None,
    preview: Annotated[bool, typer.Option("--preview/--no-preview")] = True,
) -> None:
    """See a job come, or all that happens until Ctrl-C; that ends the watching, no job. With --json: a line an event."""
    if job_id is None:
        with session.client() as client:
            _watch_all(session, client)
        return
    with session.clients() as clients:
        client, _ = _find(clients, job_id)
        _watch_one(session, client, job_id, preview)


def _watch_all(session: Session, client: Client) -> None:
    from cli.client import Event
    from cli.progress import in_words

    session.say(f"watching {client.name} at {client.url}; Ctrl-C ends it")
    event = Event("", {})
    for event in client.events():
        if session.as_json:
            session.emit_line({"event": event.name, **event.data})
            continue
        text = in_words(event)
        job_id = event.data.get("job_id") or event.data.get("id")
        if text is not None and job_id:
            print(f"{job_id}  {text}", flush=True)
        if event.name == "bye":
            break
    reason = event.data.get("reason") or "it was cut off"
    raise Failure(Status.UNREACHABLE, f"{client.name} ended the stream: {reason}")


def _watch_one(session: Session, client: Client, job_id: str, preview: bool) -> None:
    from cli.job import drawn, summary
    from cli.progress import Progress

    with Progress(preview=preview, quiet=session.as_json) as shown:
        for event in client.follow(job_id):
            shown.tell(event)
            if session.as_json:
                session.emit_line({"event": event.name, **event.data})
    try:
        job = drawn(event.data)
    except Failure as failure:
        # Its end is on the last line already.
        if session.as_json:
            raise typer.Exit(int(failure.status)) from failure
        raise
    session.say(summary(job))


def fetch(
    session: Session,
    job_id: JobId,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File, folder, or - for standard output.")
    ] = None,
) -> None:
    """Write the pictures of a job that has ended."""
    from cli.job import drawn
    from cli.job import fetch as fetch_pictures

    if output == files.STDOUT and session.as_json:
        raise usage("-o", "- is the picture and nothing else: no --json")
    target = files.Target(output)
    with session.clients() as clients:
        client, job = _find(clients, job_id)
        if job["status"] in ("queued", "running"):
            text = f"job {job_id} is {job['status']}; ./flux queue watch {job_id} waits for it"
            raise Failure(Status.LATER, text, code="not_ended")
        written = [str(path) for path in fetch_pictures(client, drawn(job), target)]
    if session.as_json:
        session.emit({"id": job_id, "files": written})
    else:
        for path in written:
            print(path)


def cancel(session: Session, job_ids: JobIds) -> None:
    """Cancel jobs, waiting or running. What had ended stays as it is."""
    _each(session, job_ids, "cancel", lambda answer: (
        "cancelled" if answer["cancelled"] else f"had {answer['status']} already"
    ))  # fmt: skip


def retry(session: Session, job_ids: JobIds) -> None:
    """The same requests again, as new jobs."""
    _each(session, job_ids, "retry", lambda answer: f"again as {answer['id']}")


def _each(session: Session, job_ids: list[str], what: str, words: Any) -> None:
    """Do it to each; the first that is not known ends it, before anything is done."""
    with session.clients() as clients:
        found = [_find(clients, job_id) for job_id in job_ids]
        answers = []
        for client, job in found:
            answer = client.ask("POST", f"/jobs/{job['id']}/{what}")
            answers.append({**answer, "service": client.name})
            if not session.as_json:
                print(f"{job['id']}  {words(answer)}")
    if session.as_json:
        session.emit({"jobs": answers})


def pause(session: Session) -> None:
    """Begin no more jobs; running ones end."""
    _whole(session, "pause")


def resume(session: Session) -> None:
    """Go on."""
    _whole(session, "resume")


def clear(session: Session) -> None:
    """Cancel every job that waits."""
    _whole(session, "clear")


def _whole(session: Session, what: str) -> None:
    """On every service that is meant."""
    answers = []
    with session.clients() as clients:
        for client in clients:
            queue = client.ask("POST", f"/queue/{what}")
            answers.append({"service": client.name, **queue})
            state = "paused" if queue["paused"] else "goes on"
            more = f", {queue['cleared']} cancelled" if "cleared" in queue else ""
            if not session.as_json:
                print(f"{client.name}  {state}, {queue['queued']} waiting{more}")
    if session.as_json:
        session.emit({"services": answers})


def _find(clients: list[Client], job_id: str) -> tuple[Client, dict[str, Any]]:
    """The service that has a job. Raises the first one's words where none has."""
    from urllib.parse import quote

    unknown: Failure | None = None
    for client in clients:
        try:
            return client, client.job(quote(job_id, safe=""))
        except Failure as failure:
            if failure.code != "not_found":
                raise
            unknown = unknown or failure
    assert unknown is not None
    raise unknown
