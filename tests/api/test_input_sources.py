"""What may stand in a picture's field."""

from __future__ import annotations

import base64

import pytest

from api.input_sources import decoded
from config.errors import InvalidRequest

TEXT = base64.b64encode(b"a picture").decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"  {TEXT}\n",
        f"{TEXT[:6]}\r\n{TEXT[6:]}",
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/jpeg;name=a.jpg;BASE64,{TEXT}",
        f"data:;base64,{TEXT}",
    ],
)
def test_decoded_takes_base64_and_data_urls(text: str) -> None:
    assert decoded("image", text) == b"a picture"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "https://example.org/a.png",
        "HTTPS://example.org/a.png",
        " https://example.org/a.png",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "gopher:x",
        "blob:null/1",
    ],
)
def test_decoded_refuses_a_url_by_name(url: str) -> None:
    scheme = url.strip().partition(":")[0]
    with pytest.raises(InvalidRequest, match=rf"mask: is a URL \({scheme}:\); nothing is fetched"):
        decoded("mask", url)


def test_decoded_refuses_a_data_url_without_base64() -> None:
    with pytest.raises(InvalidRequest, match="image: is a data URL without base64"):
        decoded("image", "data:text/plain,hello")


@pytest.mark.parametrize("text", ["/etc/passwd.png", "abc", "a.png", "../a", TEXT + "!", "ä"])
def test_decoded_refuses_what_is_no_base64(text: str) -> None:
    with pytest.raises(InvalidRequest, match="image: is neither base64"):
        decoded("image", text)
