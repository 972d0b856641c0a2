"""`flux generate`: a prompt to a picture on disk, or FP4 and BF16 beside each other."""

from __future__ import annotations

import json
import math
import random
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import files
from cli.command import command
from cli.complete import lora_names, model_ids
from cli.failures import usage
from cli.job import cancelled, ended, fetch, submit, summary
from cli.session import Session

if TYPE_CHECKING:
    from cli.client import Client

COMPARED = ("bf16", "fp4")
MAX_DRAWN_SEED = 2**32 - 1
PICTURE, INPUT, END = "The picture", "Pictures to begin with", "What becomes of it"
# Of a job's request, what makes the same picture on the other service.
SAME_PICTURE = (
    "model", "backend", "width", "height", "num_inference_steps", "guidance_scale", "true_cfg_scale",
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    command(app, "generate")(generate)


def _option(*names: str, panel: str = PICTURE, **rest: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=False, **rest)


def generate(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="What to draw; - reads it from standard input.")],
    output: Annotated[
        str | None,
        _option(
            "-o",
            "--output",
            panel=END,
            help="File (.png, .jpg, .webp), folder, or - for standard output. Left out: ./<job>-<index>.png.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        _option(
            "--lora",
            help="NAME, NAME:WEIGHT; several with several --lora.",
            autocompletion=lora_names,
        ),
    ] = None,
    no_lora: Annotated[
        bool, _option("--no-lora", help="Not even the service's default LoRAs.")
    ] = False,
    compare: Annotated[
        bool,
        _option(
            "--compare",
            panel=END,
            help="Draw it on FP4 and BF16 with one seed; writes both, and both side by side with their PSNR.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        _option("--model", "-m", help="An id of ./flux models list.", autocompletion=model_ids),
    ] = None,
    backend: Annotated[
        str | None, _option("--backend", help="flux, flux-local, sd, flux-api.")
    ] = None,
    size: Annotated[
        str | None, _option("--size", help="WIDTHxHEIGHT in pixels, such as 1024x768.")
    ] = None,
    steps: Annotated[int | None, _option("--steps", "-s", help="Steps of the sampler.")] = None,
    seed: Annotated[int | None, _option("--seed", help="Left out: drawn, and told.")] = None,
    guidance: Annotated[float | None, _option("--guidance", "-g", help="guidance_scale.")] = None,
    cfg: Annotated[
        float | None, _option("--cfg", help="true_cfg_scale, acts with --negative.")
    ] = None,
    negative: Annotated[str | None, _option("--negative", help="What to keep away from.")] = None,
    num_images: Annotated[int, _option("--num-images", "-n", help="Picture i has seed + i.")] = 1,
    image: Annotated[
        str | None,
        _option("--image", "-i", panel=INPUT, help="File, or the id of a picture of the service."),
    ] = None,
    mask: Annotated[
        str | None, _option("--mask", panel=INPUT, help="White is drawn anew. As --image.")
    ] = None,
    strength: Annotated[
        float | None,
        _option("--strength", panel=INPUT, help="How much of --image is drawn anew, 0 to 1."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        _option("--reference", panel=INPUT, help="A picture to look at; several with several."),
    ] = None,
    quality: Annotated[
        int | None, _option("--quality", panel=END, help="Of .jpg and .webp, 1 to 100.")
    ] = None,
    tag: Annotated[
        list[str] | None, _option("--tag", panel=END, help="Remembered with the job, for usage.")
    ] = None,
    detach: Annotated[
        bool,
        _option("--detach", panel=END, help="Put it into the queue and end; prints the job's id."),
    ] = False,
    preview: Annotated[
        bool,
        _option(
            "--preview/--no-preview", panel=END, help="Show it as it comes, where the terminal can."
        ),
    ] = True,
) -> None:
    """Draw a picture, and see it come. Ctrl-C cancels the job on the service."""
    _check_together(session, output, compare, detach, num_images, lora, no_lora)
    target = files.Target(output)
    body = {
        "prompt": _prompt(prompt),
        "negative_prompt": negative,
        "model": model,
        "backend": backend,
        **_size(size),
        "num_inference_steps": steps,
        "guidance_scale": _finite("--guidance", guidance),
        "true_cfg_scale": _finite("--cfg", cfg),
        "seed": seed,
        "num_images": num_images,
        "loras": [] if no_lora else [_lora(text) for text in lora] if lora else None,
        "image": None if image is None else files.picture("--image", image),
        "mask": None if mask is None else files.picture("--mask", mask),
        "strength": _finite("--strength", strength),
        "reference_images": [files.picture("--reference", each) for each in reference or ()]
        or None,
        "output_format": target.format,
        "output_quality": quality,
        "metadata": {"tags": tag} if tag else None,
    }
    body = {name: value for name, value in body.items() if value is not None}
    _check_text(body)
    if compare:
        _compare(session, body, target, preview)
    elif detach:
        with session.client() as client:
            _detach(session, client, body)
    else:
        with session.client() as client:
            _draw(session, client, body, target, preview)


def _detach(session: Session, client: Client, body: dict[str, Any]) -> None:
    job = submit(client, body)
    if session.as_json:
        session.emit({**job, "service": client.name, "url": client.url})
    else:
        print(job["id"])


def _draw(
    session: Session, client: Client, body: dict[str, Any], target: files.Target, preview: bool
) -> None:
    from cli.progress import Progress

    job_id = submit(client, body)["id"]
    try:
        with Progress(preview=preview, quiet=session.as_json) as shown:
            job = ended(client, job_id, shown.tell)
        written = fetch(client, job, target)
    except KeyboardInterrupt:
        raise cancelled(client, [job_id]) from None
    if session.as_json:
        session.emit({**job["result"], "files": [str(path) for path in written]})
        return
    session.say(summary(job))
    for path in written:
        print(path)


def _compare(session: Session, body: dict[str, Any], target: files.Target, preview: bool) -> None:
    """One picture on each service, at the same time, by the first one's choices."""
    from cli import compare
    from cli.client import Client
    from cli.session import addresses

    if body.get("seed", -1) == -1:
        body["seed"] = random.SystemRandom().randint(0, MAX_DRAWN_SEED)
    where = dict(addresses())
    clients = [Client(where[name], session.chosen_key(), name) for name in COMPARED]
    try:
        jobs = compare.draw(clients, body, SAME_PICTURE, preview=preview, quiet=session.as_json)
        report = compare.write(clients, jobs, target)
    finally:
        for client in clients:
            client.close()
    if session.as_json:
        session.emit(report)
        return
    for job in jobs:
        session.say(summary(job))
    same = "the same, to the bit" if report["identical"] else f"PSNR {report['psnr_db']:.2f} dB"
    session.say(f"FP4 against BF16: {same}")
    for path in report["files"].values():
        print(path)


def _check_together(
    session: Session, output: str | None, compare: bool, detach: bool, num_images: int,
    lora: list[str] | None, no_lora: bool,
) -> None:  # fmt: skip
    """Options that contradict each other."""
    if lora and no_lora:
        raise usage("--no-lora", "goes not with --lora")
    if detach and (compare or output):
        raise usage(
            "--detach", f"goes not with {'--compare' if compare else '-o'}: nothing is fetched"
        )
    if output == files.STDOUT and (session.as_json or compare or num_images != 1):
        raise usage("-o", "- is one picture and nothing else: no --json, --compare or --num-images")
    if compare and num_images != 1:
        raise usage("--compare", "draws one picture on each service; leave --num-images out")
    if compare and (session.url or session.service):
        raise usage(
            "--compare", "asks both services by their settings; leave --url and --service out"
        )


def _prompt(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _check_text(body: dict[str, Any]) -> None:
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise usage("prompt", "holds bytes that are no UTF-8 text") from None


def _size(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    width, sign, height = text.lower().replace("×", "x").partition("x")
    if not (sign and width.isdecimal() and height.isdecimal() and len(text) < 20):
        raise usage("--size", f"{text!r} is no size; it is written as 1024x768")
    return {"width": int(width), "height": int(height)}


def _finite(option: str, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise usage(option, f"{value} is no number to draw with")
    return value


def _lora(text: str) -> dict[str, Any]:
    """NAME or NAME:WEIGHT; a name may hold a colon itself."""
    name, sign, weight = text.rpartition(":")
    if not sign:
        return {"name": text}
    try:
        number = float(weight)
    except ValueError:
        raise usage(
            "--lora", f"{text!r}: {weight!r} is no weight; it is written as {name}:0.8"
        ) from None
    return {"name": name, "weight": _finite("--lora", number)}
