"""Log lines: a sentence, then fields that nobody outside can forge."""

import json
import logging

import pytest

from utils.log_forms import FIELDS, JsonFormatter, TextFormatter, readable, without

FORGERIES = ["a b", "a\nb", "a\x1b[31mb", "a\x9bb", "a\u2028b", "x status=500"]


def record(message: str = "answered", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("name", logging.INFO, "", 0, message, (), None)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def text(message: str = "answered", **fields: object) -> str:
    return TextFormatter().format(record(message, **fields))


def test_text_has_its_fields_after_the_sentence() -> None:
    assert text(action="request", status=200).endswith(" INFO answered action=request status=200")


@pytest.mark.parametrize("said", FORGERIES)
def test_text_keeps_what_a_client_sent_in_one_field(said: str) -> None:
    made = text(path=said, status=404)
    assert len(made.splitlines()) == 1
    assert f"path={said!r} status=404" in made


@pytest.mark.parametrize("said", ["a\nb", "a\x1b[31mb", "a\u2028b", "a\rb"])
def test_text_sentence_stays_in_its_line(said: str) -> None:
    assert text(said).isprintable()


def test_text_trace_cannot_begin_a_line_of_its_own() -> None:
    made = text(exc_text="Traceback\nValueError: x\n2026-01-01 00:00:00,000 INFO forged")
    assert all(line.startswith("    ") for line in made.splitlines()[1:])


@pytest.mark.parametrize("said", FORGERIES)
def test_json_is_one_line_whatever_is_said(said: str) -> None:
    made = JsonFormatter("bf16").format(record(said, path=said))
    assert made.isprintable() and made.isascii()
    assert json.loads(made)["message"] == json.loads(made)["path"] == said


def test_json_number_stays_a_number() -> None:
    assert json.loads(JsonFormatter("bf16").format(record(status=200, ms=1.5)))["ms"] == 1.5


@pytest.mark.parametrize("name", ["password", "key", "authorization"])
def test_line_leaves_out_what_is_no_field(name: str) -> None:
    assert name not in FIELDS
    assert "secret" not in text(**{name: "secret"})
    assert "secret" not in JsonFormatter("bf16").format(record(**{name: "secret"}))


def test_readable_is_the_file_for_people() -> None:
    made = JsonFormatter("bf16").format(record("a\x1bb", job_id="7", exc_text="Trace\nError"))
    first, *trace = readable(json.loads(made)).splitlines()
    assert first.endswith(" bf16 INFO a\\x1bb job_id=7") and trace == ["    Trace", "    Error"]


@pytest.mark.parametrize("quote", [str, repr, json.dumps], ids=["bare", "repr", "json"])
@pytest.mark.parametrize("prompt", ["a cat", 'a "cat"\nin München', "back\\slash"])
def test_without_takes_words_out_however_they_are_quoted(prompt: str, quote) -> None:
    said = without(f"prompt: {quote(prompt)} was moderated", [prompt, None, ""])
    assert prompt not in said and quote(prompt)[1:-1] not in said
    assert said.startswith("prompt: ") and said.endswith(" was moderated")
