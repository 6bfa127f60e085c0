"""The documentation: its lines can be read beside code, its links lead somewhere, its contents are complete."""

from __future__ import annotations

import subprocess

import pytest
from support.pages import PAGES, TOP, headings, languages, links, read

WIDEST = 120
# An answer, played back as a model would write it.
NO_PAGES = {"replay/upstream/demo.md"}
# Rows that a test reads one by one, each with all that is known of a stream.
WIDE_TABLES = {"tests/samples/README.md"}


def _all_pages() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listing = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    listed = [name for name in listing.stdout.splitlines() if (TOP / name).exists()]
    return sorted({*PAGES, *listed} - NO_PAGES)


ALL_PAGES = _all_pages()


@pytest.mark.parametrize("page", ALL_PAGES)
def test_no_line_is_wider_than_code_is(page):
    lines = [line for line in read(page).splitlines() if len(line) > WIDEST]
    if page in WIDE_TABLES:
        lines = [line for line in lines if not line.startswith("| ")]
    assert [line for line in lines if not line.strip("-* ").startswith("https://")] == []


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_link_of_the_repository_leads_somewhere(page):
    assert [link for link in links(page) if "://" not in link and not _leads_somewhere(page, link)] == []


def _leads_somewhere(page: str, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (TOP / page).parent.joinpath(path).resolve() if path else TOP / page
    if not target.exists() or not target.is_relative_to(TOP):
        return False
    return not anchor or anchor in [each for _, each in headings(target.relative_to(TOP).as_posix())]


@pytest.mark.parametrize("page", ALL_PAGES)
def test_no_two_headings_have_one_anchor(page):
    anchors = [anchor for _, anchor in headings(page)]
    assert sorted(anchors) == sorted(set(anchors))


@pytest.mark.parametrize("page", PAGES)
def test_contents_name_every_section(page):
    above, separator, _ = read(page).partition("(#")
    assert separator, "no contents"
    sections = [anchor for level, anchor in headings(page) if level == 2]
    behind = sections[above.count("\n## ") :]  # the README begins with what can be seen in a minute
    assert [anchor for anchor in behind if f"#{anchor}" not in links(page)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_example_says_what_it_is_written_in(page):
    # those of `sh`, `python` and `html` are run by tests/acceptance/test_readme.py, js by test_development_proxy.py
    assert languages(page) <= {"sh", "python", "html", "js", "text"}


def test_first_page_leads_to_all_others():
    assert set(PAGES) - {"README.md"} <= {link.partition("#")[0] for link in links("README.md")}
