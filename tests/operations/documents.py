"""README and docs/*.md as data: their blocks of code, links and headings.

A block of commands is run by the tests, or a comment on the line before it says why not:

    <!-- not run: needs a GPU -->           one of REASONS
    <!-- shown by tests/test_it.py -->      the test that runs these commands
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from config.settings import ROOT

# Why a command is run by no test. Few and final: whatever else it is, it can be run.
REASONS = frozenset(
    {
        "needs a GPU",
        "needs a container engine",
        "needs the network",
        "needs another program",  # one that is no part of this project and that no test installs
        "needs root",
        "runs for hours",
    }
)
SHELLS = frozenset({"bash", "sh"})
RUN = SHELLS | {"python", "js"}
# What is read and not run. A fence without a language is one of these.
READ = frozenset({"", "text", "json", "toml", "ini", "yaml", "html"})

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- (not run: (?P<reason>.*?)|shown by (?P<test>tests/\S+\.py)) -->\n*$")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block. `reason` and `test` are the marker's; the line is that of its fence."""

    path: Path
    line: int
    language: str
    text: str
    reason: str | None = None
    test: str | None = None

    @property
    def name(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def is_marked(self) -> bool:
        return self.reason is not None or self.test is not None


@dataclass(frozen=True, slots=True)
class Document:
    path: Path
    text: str

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def prose(self) -> str:
        """Without blocks and comments."""
        return _COMMENT.sub("", _FENCE.sub("", self.text))

    def blocks(self) -> Iterator[Block]:
        for found in _FENCE.finditer(self.text):
            marker = _MARKER.search(self.text, 0, found.start())
            yield Block(
                path=self.path,
                line=self.text.count("\n", 0, found.start()) + 1,
                language=found[1],
                text=found[2],
                reason=marker["reason"] if marker else None,
                test=marker["test"] if marker else None,
            )

    def links(self) -> list[str]:
        return _LINK.findall(_CODE.sub("`code`", self.prose))

    def anchors(self) -> set[str]:
        """What GitHub makes of the headings."""
        seen: dict[str, int] = {}
        found = set()
        for heading in _HEADING.findall(self.prose):
            words = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            count = seen[words] = seen.get(words, -1) + 1
            found.add(f"{words}-{count}" if count else words)
        return found


def documents() -> list[Document]:
    """The README first, then docs/ by name, then the rest that is linked from them."""
    paths = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "models").glob("*/README.md")),
    ]
    return [Document(path, path.read_text(encoding="utf-8")) for path in paths]
