"""The client of BFL's cloud against the stand-in, and against servers that break off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from config.settings import CloudSettings
from models import bfl as module
from models.bfl import Bfl, Look
from models.bfl_errors import (
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnclear,
    CloudUnreachable,
    KeyForbidden,
    KeyUnknown,
    Moderated,
    NoCredits,
    TaskLost,
)
from models.bfl_request import CloudTask
from tests.cloud import KEY, StandIn
from tests.service import free_port

T = TypeVar("T")

BODY = {"prompt": "a red balloon", "width": 64, "height": 64, "output_format": "png"}
Call = Callable[[Bfl], Awaitable[T]]


def run(settings: CloudSettings, call: Call[T]) -> T:
    async def in_loop() -> T:
        client = Bfl(settings)
        try:
            return await call(client)
        finally:
            await client.close()

    return asyncio.run(in_loop())


def submit(settings: CloudSettings, prompt: str = "a red balloon", **fields: Any) -> CloudTask:
    body = {**BODY, "prompt": prompt, **fields}
    return run(settings, lambda client: client.submit("flux-2-pro", body))


def refusal(settings: CloudSettings, prompt: str) -> CloudError:
    with pytest.raises(CloudError) as caught:
        submit(settings, prompt)
    return caught.value


def look(settings: CloudSettings, task: CloudTask) -> Look:
    return run(settings, lambda client: client.look(task))


def look_refusal(cloud: StandIn, prompt: str) -> CloudError:
    task = submit(cloud.settings(), prompt)
    with pytest.raises(CloudError) as caught:
        look(cloud.settings(), task)
    return caught.value


# Submitting


def test_submit_taken_tells_task_address_and_cost(cloud: StandIn) -> None:
    task = submit(cloud.settings())
    (call,) = cloud.submits
    assert task.id == call["task"] and task.id in task.polling_url
    assert task.cost_usd == pytest.approx(0.03)
    assert call["has_key"] and call["model"] == "flux-2-pro"


@pytest.mark.parametrize(
    ("code", "kind", "native"),
    [
        (400, CloudRefused, "provider_refused"),
        (401, KeyUnknown, "provider_key"),
        (402, NoCredits, "provider_credits"),
        (403, KeyForbidden, "provider_forbidden"),
        (404, CloudRefused, "provider_refused"),
        (422, CloudRefused, "provider_refused"),
        (429, CloudBusy, "provider_busy"),
        (500, CloudUnclear, "provider_error"),
        (502, CloudUnclear, "provider_error"),
        (503, CloudUnclear, "provider_error"),
        (504, CloudUnclear, "provider_error"),
    ],
)
def test_submit_status_has_its_own_error(
    cloud: StandIn, code: int, kind: type[CloudError], native: str
) -> None:
    error = refusal(cloud.settings(), f"[[http={code}]]")
    assert type(error) is kind and error.code == native
    assert str(code) in error.message
    assert error.is_free == (code < 500)  # whether it may be followed by another
    assert ("charged" in error.message) == (code >= 500)


def test_submit_wrong_key_is_told_without_the_key(cloud: StandIn) -> None:
    error = refusal(cloud.settings(bfl_api_key="wrong_key_9"), "x")
    assert isinstance(error, KeyUnknown)
    assert "SD_BFL_API_KEY" in error.message and "wrong_key_9" not in error.message


def test_submit_validation_names_the_field(cloud: StandIn) -> None:
    with pytest.raises(CloudRefused, match="width: Input should be a multiple of 16"):
        submit(cloud.settings(), width=72)


def test_submit_empty_account_is_no_credits(cloud: StandIn) -> None:
    cloud.reset(credits=1)
    assert isinstance(refusal(cloud.settings(), "x"), NoCredits)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("0.4", 0), ("soon", None), ("-3", 0)])
def test_submit_retry_after_is_read(cloud: StandIn, header: str, seconds: int | None) -> None:
    error = refusal(cloud.settings(), f"[[http=429]] [[retry-after={header}]]")
    assert error.retry_after_seconds == seconds


def test_submit_retry_after_that_is_a_date_is_read(cloud: StandIn) -> None:
    late = "Sun, 06 Nov 2094 08:49:37 GMT"
    error = refusal(cloud.settings(), f"[[http=429]] [[retry-after={late}]]")
    assert error.retry_after_seconds is not None and error.retry_after_seconds > 10**9


@pytest.mark.parametrize("how", ["drop", "500", "json"])
def test_submit_that_breaks_off_after_it_was_taken_is_unclear(cloud: StandIn, how: str) -> None:
    error = refusal(cloud.settings(), f"[[then={how}]]")
    assert isinstance(error, CloudUnclear) and not error.is_free
    assert "may have charged" in error.message
    assert len(cloud.submits) == 1


def test_submit_without_an_answer_is_unclear(
    cloud: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    assert isinstance(refusal(cloud.settings(), "[[then=hang]]"), CloudUnclear)
    assert len(cloud.submits) == 1


def test_submit_answer_that_never_ends_is_unclear(
    cloud: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 16)
    assert isinstance(refusal(cloud.settings(), "x"), CloudUnclear)


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b'{"detail": ' + b'{"a": ' * 400 + b"1" + b"}" * 401,
        b'{"id": "x", "polling_url": "' + b"x" * 3000 + b'"}',
        b'{"id": "", "polling_url": "https://api.bfl.ai/x"}',
        b'{"id": 1, "polling_url": "https://api.bfl.ai/x"}',
        b'["id", "polling_url"]',
        b"null",
        b"\xff\xfe",
        b"",
    ],
)
def test_submit_answer_that_nobody_understands_is_unclear(answer: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    error = asyncio.run(answered(head % len(answer) + answer))
    assert isinstance(error, CloudUnclear) and "may have charged" in error.message
    assert len(error.message) < 700


async def answered(answer: bytes) -> CloudError:
    """What a submit comes to that is answered with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Bfl(CloudSettings(bfl_api_key=KEY, bfl_api_base=f"http://127.0.0.1:{port}/v1"))
    try:
        with pytest.raises(CloudError) as caught:
            await client.submit("flux-2-pro", BODY)
        return caught.value
    finally:
        await client.close()
        server.close()


def test_submit_where_nobody_listens_sends_nothing() -> None:
    settings = CloudSettings(bfl_api_key=KEY, bfl_api_base=f"http://127.0.0.1:{free_port()}/v1")
    error = refusal(settings, "x")
    assert isinstance(error, CloudUnreachable) and error.is_free
    assert "nothing was sent" in error.message


@pytest.mark.parametrize("what", [b"", b"HTTP/1.1 200 OK\r\ncontent-le"])
def test_submit_connection_reset_after_the_body_is_unclear(what: bytes) -> None:
    """The body has arrived, and the connection is torn down: whether it counts, nobody knows."""
    arrived = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [
            int(line[15:]) for line in head.lower().split(b"\r\n") if b"content-length" in line
        ]
        arrived.append(await reader.readexactly(length))
        writer.write(what)
        writer.transport.abort()

    async def in_loop() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = Bfl(CloudSettings(bfl_api_key=KEY, bfl_api_base=f"http://127.0.0.1:{port}/v1"))
        try:
            with pytest.raises(CloudUnclear):
                await client.submit("flux-2-pro", BODY)
        finally:
            await client.close()
            server.close()

    asyncio.run(in_loop())
    assert len(arrived) == 1


def test_submit_redirect_is_not_followed(cloud: StandIn) -> None:
    error = refusal(cloud.settings(), "[[redirect]]")
    assert "redirect" in error.message
    assert [call["host"] for call in cloud.calls] == [f"127.0.0.1:{cloud.port}"]


def test_submit_what_the_cloud_says_holds_no_key_and_no_line_ends(cloud: StandIn) -> None:
    client = Bfl(cloud.settings())
    said = client._said({"detail": f"key {KEY}\nis \x1b[31m bad" + "x" * 999}, "")
    assert KEY not in said and said.startswith("key *** is")
    assert said.isprintable() and len(said) <= module.MAX_SAID_CHARACTERS


def test_client_key_is_in_no_text_of_it(cloud: StandIn) -> None:
    client = Bfl(cloud.settings())
    assert KEY not in f"{client!r}{client._submits!r}{client._submits.headers!r}"


# Looking


def test_look_goes_where_polling_url_points(cloud: StandIn) -> None:
    task = submit(cloud.settings())
    assert look(cloud.settings(), task).picture_url is not None
    assert cloud.calls[-1]["path"] == "/eu2/v1/get_result" and cloud.calls[-1]["has_key"]


def test_look_status_that_nobody_knows_is_running(cloud: StandIn) -> None:
    task = submit(cloud.settings(), "[[status=Dreaming]]")
    seen = look(cloud.settings(), task)
    assert (seen.status, seen.progress, seen.picture_url) == ("Dreaming", 0.5, None)


@pytest.mark.parametrize(
    ("words", "kind", "native"),
    [
        ("[[moderate=request]]", Moderated, "moderated"),
        ("[[moderate=content]]", Moderated, "moderated"),
        ("[[error]]", CloudError, "provider_error"),
        ("[[lost]]", TaskLost, "provider_lost"),
        ("[[503-body]]", CloudError, "provider_error"),
        ("[[poll-http=401]]", KeyUnknown, "provider_key"),
        ("[[poll-http=429]]", CloudBusy, "provider_busy"),
        ("[[poll-http=500]]", CloudUnreachable, "provider_error"),
        ("[[poll=redirect]]", CloudError, "provider_error"),
    ],
)
def test_look_end_has_its_own_error(
    cloud: StandIn, words: str, kind: type[CloudError], native: str
) -> None:
    error = look_refusal(cloud, words)
    assert type(error) is kind and error.code == native
    assert {call["host"] for call in cloud.calls} == {f"127.0.0.1:{cloud.port}"}


def test_look_moderated_names_what_was_blocked(cloud: StandIn) -> None:
    assert (
        "request (Moderation Reasons: test)" in look_refusal(cloud, "[[moderate=request]]").message
    )
    assert "picture that was drawn" in look_refusal(cloud, "[[moderate=content]]").message


@pytest.mark.parametrize(
    "url",
    [
        "https://api.bfl.ai.evil.example/v1/get_result?id=1",
        "https://evil-bfl.ai/v1/get_result?id=1",
        "https://api.bfl.ai@evil.example/v1/get_result",
        "https://evil.example/#.bfl.ai",
        "https://api.bfl.ai\\@evil.example/",
        "https://api.bfl.ai:8443/v1/get_result?id=1",
        "http://api.bfl.ai/v1/get_result?id=1",
        "https://user:word@api.bfl.ai/v1/get_result?id=1",
        "https://127.0.0.1/v1/get_result?id=1",
        "ftp://api.bfl.ai/x",
        "/v1/get_result?id=1",
        "https://[",
        "",
    ],
)
def test_look_key_is_sent_to_no_other_host(url: str) -> None:
    task = CloudTask(id="1", polling_url=url, cost_usd=None)
    with pytest.raises(CloudError, match="key is not sent there") as caught:
        look(CloudSettings(bfl_api_key=KEY), task)
    assert "may have charged" in caught.value.message


@pytest.mark.parametrize(
    "url", ["https://api.eu2.bfl.ai/v1/get_result?id=1", "https://API.bfl.ai:443/v1/get_result"]
)
def test_look_hosts_of_bfl_may_have_the_key(url: str) -> None:
    client = Bfl(CloudSettings(bfl_api_key=KEY))
    assert client._checked(url).scheme == "https"


def test_look_stand_in_may_be_called_by_its_other_name(cloud: StandIn) -> None:
    task = submit(cloud.settings(), "[[poll=localhost]]")
    assert task.polling_url.startswith(f"http://localhost:{cloud.port}/")
    assert look(cloud.settings(), task).picture_url is not None


@pytest.mark.parametrize("other", ["http://127.0.0.1:{}/x", "https://localhost:{}/x"])
def test_look_another_port_of_the_stand_ins_machine_gets_no_key(cloud: StandIn, other: str) -> None:
    port = free_port() if other.startswith("http:") else cloud.port
    task = CloudTask(id="1", polling_url=other.format(port), cost_usd=None)
    with pytest.raises(CloudError, match="key is not sent there"):
        look(cloud.settings(), task)


def test_look_foreign_address_is_not_called(cloud: StandIn) -> None:
    look_refusal(cloud, "[[poll=foreign]]")
    assert [call["method"] for call in cloud.calls] == ["POST"]


# The picture


def picture(cloud: StandIn, words: str) -> bytes:
    async def call(client: Bfl) -> bytes:
        task = await client.submit("flux-2-pro", {**BODY, "prompt": words})
        seen = await client.look(task)
        assert seen.picture_url is not None
        return await client.download(seen.picture_url)

    return run(cloud.settings(), call)


def test_download_is_a_picture_and_is_fetched_without_the_key(cloud: StandIn) -> None:
    assert picture(cloud, "a red balloon").startswith(b"\x89PNG")
    assert cloud.calls[-1]["path"].startswith("/delivery/") and not cloud.calls[-1]["has_key"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("html", "text/html"),
        ("foreign", "no host of BFL's"),
        ("redirect", "redirect"),
        ("huge", "larger than 1 MiB"),
    ],
)
def test_download_what_is_no_picture_is_refused(
    cloud: StandIn, monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    monkeypatch.setattr(module, "MAX_PICTURE_BYTES", 2**20)
    with pytest.raises(CloudError, match=words):
        picture(cloud, f"[[picture={how}]]")
    assert {call["host"] for call in cloud.calls} == {f"127.0.0.1:{cloud.port}"}


def test_download_address_that_is_over_is_worth_another_look(cloud: StandIn) -> None:
    with pytest.raises(CloudUnreachable, match="403"):
        picture(cloud, "[[expire=1]]")


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [
        ("https://delivery-eu1.bfl.ai/a.png?sig=1", True),
        ("https://bfldeliveryprod.blob.core.windows.net/a.png?sig=1", True),
        ("https://evil.blob.core.windows.net/a.png", False),
        ("http://delivery-eu1.bfl.ai/a.png", False),
        ("file:///etc/passwd", False),
        ("https://169.254.169.254/latest/meta-data", False),
    ],
)
def test_download_hosts(url: str, is_taken: bool) -> None:
    assert module._is_https(module._url(url), module.PICTURE_HOSTS) is is_taken
