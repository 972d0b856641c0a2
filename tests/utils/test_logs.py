"""Log lines: a sentence, then fields that nobody outside can forge."""

import logging

import pytest

from utils.logs import FIELDS, KeyValueFormatter


def line(message: str = "answered", **fields: object) -> str:
    record = logging.LogRecord("name", logging.INFO, "", 0, message, (), None)
    for name, value in fields.items():
        setattr(record, name, value)
    return KeyValueFormatter().format(record)


def test_line_has_its_fields_after_the_sentence() -> None:
    assert line(action="request", status=200).endswith(" INFO answered action=request status=200")


@pytest.mark.parametrize("text", ["a b", "a\nb", "a\x1b[31mb", "a\u2028b", "x status=500"])
def test_line_keeps_what_a_client_sent_in_one_field(text: str) -> None:
    made = line(path=text, status=404)
    assert len(made.splitlines()) == 1
    assert f"path={text!r} status=404" in made


@pytest.mark.parametrize("name", ["password", "key", "authorization"])
def test_line_leaves_out_what_is_no_field(name: str) -> None:
    assert name not in FIELDS
    assert "secret" not in line(**{name: "secret"})
