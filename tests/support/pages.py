"""The documentation: its pages, what is a heading, a link or an example in one, and which examples are for a test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[2]
PAGES = ("README.md", "replay/http/README.md", "deploy/README.md", "tests/benchmarks/README.md")

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Example:
    """A block of code."""

    page: str
    heading: str  # the one that it stands under
    language: str
    text: str
    not_run: str  # why no test runs it; empty where one does


def read(page: str) -> str:
    """A page's text, by its path in the repository."""
    return (TOP / page).read_text(encoding="utf-8")


def examples(page: str, *languages: str, heading: str | None = None) -> list[Example]:
    """The examples that are to be run, in their order, under one heading or under all."""
    found = [each for each in _examples(page) if each.language in languages and not each.not_run]
    return [each for each in found if heading in (None, each.heading)]


def languages(page: str) -> set[str]:
    """What the examples of a page are written in; the empty word where that is not said."""
    return {each.language for each in _examples(page)}


def headings(page: str) -> list[tuple[int, str]]:
    """The level and the anchor of each heading, as GitHub makes them."""
    found = re.findall(r"^(#+) (.+)$", _without_code(read(page)), re.MULTILINE)
    return [(len(marks), re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")) for marks, text in found]


def links(page: str) -> list[str]:
    """Where the links of a page lead."""
    return _LINK.findall(re.sub(r"`[^`]*`", "`", _without_code(read(page))))


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _examples(page: str) -> Iterator[Example]:
    heading = before = ""
    block: list[str] | None = None
    for line in read(page).splitlines(keepends=True):
        if block is not None and line.startswith("```"):
            reason = _NOT_RUN.match(before)
            yield Example(page, heading, block[0][3:].strip(), "".join(block[1:]), reason[1] if reason else "")
            block, before = None, ""
        elif block is not None:
            block.append(line)
        elif line.startswith("```"):
            block = [line]
        else:
            heading = line.lstrip("#").strip() if line.startswith("#") else heading
            before = line
