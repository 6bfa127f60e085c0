"""The map of the package, `replay/README.md`: what it names exists, so that it cannot rot."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "replay"
MAP = PACKAGE / "README.md"
TEXT = re.sub(r"```.*?```", "", MAP.read_text(encoding="utf-8"), flags=re.DOTALL)
NAMED = sorted(set(re.findall(r"`([^`\n]+)`", TEXT)))
LINKS = sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT)))

PATHS = [name for name in NAMED if re.fullmatch(r"[\w./-]*(/|\.(py|lua|md|conf|json))", name)]
ROUTES = [name for name in NAMED if name.startswith("/") and name not in PATHS]
TESTS = [name for name in NAMED if name.startswith("test_")]
NAMES = [name for name in NAMED if re.fullmatch(r"[A-Za-z_][\w.]*", name) and name not in (*PATHS, *TESTS)]
FOLDERS = ("cli", "client", "http", "live", "model", "store", "upstream", "wire")
PAGES = PACKAGE / "http" / "static"


def members_of(tree: ast.AST) -> set[str]:
    """What is defined or assigned anywhere in a part of a program, and the words that stand in it as strings."""
    members: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            members.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            members.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            members.add(node.value)
    return members


@cache
def package() -> tuple[set[str], dict[str, set[str]]]:
    """All names of the package, and those in each of its classes."""
    names: set[str] = set()
    classes: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= members_of(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, set()).update(members_of(node))
    return names, classes


@cache
def names_of_tests() -> set[str]:
    """The names of all tests."""
    paths = (REPOSITORY / "tests").rglob("test_*.py")
    return {
        name for path in paths for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def test_map_names_enough_to_look_at():
    assert min(map(len, (PATHS, ROUTES, TESTS, NAMES, LINKS))) >= 2
    assert {"Hub.open", "StreamConnection.write", "max_pending_bytes"} <= set(NAMES)


@pytest.mark.parametrize("path", [*PATHS, *(link.partition("#")[0] for link in LINKS if not link.startswith("#"))])
def test_path_exists(path):
    assert (PACKAGE / path).exists() or (REPOSITORY / path).exists()


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name):
    names, classes = package()
    owner, dot, member = name.rpartition(".")
    assert member in (classes.get(owner, ()) if dot else names)


@pytest.mark.parametrize("name", TESTS)
def test_test_exists(name):
    assert name in names_of_tests()


@pytest.mark.parametrize("route", ROUTES)
def test_route_exists(route):
    paths = json.loads((PACKAGE / "http" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    assert any(path == route or path.startswith(f"{route}/") for path in paths)


def docstring_of(folder: Path) -> str:
    """The one that a folder opens with."""
    return ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""


@pytest.mark.parametrize("folder", [".", *FOLDERS])
def test_map_of_a_folder_names_each_of_its_files(folder):
    files = {path.name for path in (PACKAGE / folder).iterdir() if path.suffix in (".py", ".lua")} - {"__init__.py"}
    assert set(re.findall(r"\b\w+\.(?:py|lua)\b", docstring_of(PACKAGE / folder))) == files


def test_map_of_the_package_names_each_of_its_folders():
    assert set(re.findall(r"\b(\w+)/(?=[, ])", docstring_of(PACKAGE))) == set(FOLDERS)


def test_map_of_the_pages_names_each_of_their_files():
    files = {path.name for path in PAGES.rglob("*.*") if path.suffix in (".html", ".js", ".css")}
    assert set(re.findall(r"\b[\w-]+\.(?:html|js|css)\b", docstring_of(PACKAGE / "http"))) == files


@pytest.mark.parametrize("link", [link for link in LINKS if link.startswith("#")])
def test_table_of_contents_leads_to_a_heading(link):
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert link in {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_map_is_short_enough_to_be_read():
    lines = MAP.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 350
    assert [line for line in lines if len(line) > 120] == []
