"""Installs what the peers are made of, by the ordinary clients of Debian's, Python's and npm's registries.

Each function is at once done when all is there. All raise Missing with the last that the installer said.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from .peer import Missing

HERE = Path(__file__).parent
PYTHON = HERE / ".python"  # an environment of its own: the project's lock has nothing to do with it
NODE_MODULES = HERE / "node_modules"

_PATIENCE_S = 600.0
_PACKAGE = "libnginx-mod-nchan"


def program(name: str) -> str | None:
    """Where a program is, also one of root's."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))


# nginx and nchan.


async def nchan_module() -> Path:
    """The module that nginx is to load."""
    module = await _nchan_module()
    if module is None:
        await _apt_get_install(*([] if program("nginx") else ["nginx"]), _PACKAGE)
        module = await _nchan_module()
    if module is None:
        raise Missing(f"nginx has no nchan module after the installation of {_PACKAGE}")
    return module


async def _nchan_module() -> Path | None:
    if (nginx := program("nginx")) is None:
        return None
    folder = re.search(r"--modules-path=(\S+)", await _output(nginx, "-V"))
    module = Path(folder[1] if folder else "") / "ngx_nchan_module.so"
    return module if module.is_file() else None


async def nchan_versions() -> str:
    """As Debian names them."""
    nginx = re.search(r"nginx/(\S+)", await _output(program("nginx") or "nginx", "-v"))
    nchan = re.search(r"(?:\d+:)?([\d.]+)", await _output("dpkg-query", "-W", "-f", "${Version}", _PACKAGE))
    return f"nginx {nginx[1] if nginx else '?'}, nchan {nchan[1] if nchan else '?'}"


async def _apt_get_install(*packages: str) -> None:
    if program("apt-get") is None:
        raise Missing(f"please install, with your system's package manager: {' '.join(packages)}")
    # Not to be asked for a password in the midst of a measurement.
    as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    await _install([*as_root, "apt-get", "update", "-qq"], quiet)
    await _install([*as_root, "apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages], quiet)


# Python and Node.


async def python_environment() -> Path:
    """The interpreter with what requirements.txt names."""
    requirements, installed = HERE / "requirements.txt", PYTHON / "installed"
    interpreter = PYTHON / "bin" / "python"
    if _read(installed) != requirements.read_text():
        shutil.rmtree(PYTHON, ignore_errors=True)
        await _install([sys.executable, "-m", "venv", PYTHON])
        (PYTHON / ".gitignore").write_text("*\n")
        pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        await _install([interpreter, *pip, "-r", requirements])
        installed.write_text(requirements.read_text())  # only now: an install that was cut is begun again
    return interpreter


async def python_versions(*names: str) -> str:
    """Of Python and these distributions."""
    code = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    said = await _output(str(PYTHON / "bin" / "python"), "-c", code, *names)
    return f"{said.strip()}, Python {'.'.join(map(str, sys.version_info[:3]))}"


async def node_modules() -> str:
    """The Node that finds, from here, what package-lock.json names."""
    node, npm = program("node"), program("npm")
    if node is None or npm is None:
        raise Missing("node or npm is not installed; on Debian: apt-get install nodejs npm")
    lock, installed = HERE / "package-lock.json", NODE_MODULES / ".installed"
    if _read(installed) != lock.read_text():
        # Their install scripts would compile what is there prebuilt.
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        await _install([npm, "ci", "--prefix", HERE, *quiet])
        installed.write_text(lock.read_text())
    return node


async def node_versions(*names: str) -> str:
    """Of Node and these packages."""
    manifests = {name: (NODE_MODULES / name / "package.json").read_text() for name in names}
    found = {name: re.search(r'"version": *"([^"]+)"', text) for name, text in manifests.items()}
    node = (await _output(program("node") or "node", "--version")).strip().removeprefix("v")
    return ", ".join(f"{name} {match[1] if match else '?'}" for name, match in found.items()) + f", Node {node}"


# What they share.


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def _install(command: list[str | Path], env: Mapping[str, str] | None = None) -> None:
    print("installing:", *command, file=sys.stderr)
    code, said = await _run(command, env)
    if code:
        raise Missing(f"{' '.join(map(str, command))} failed: {said.strip()[:1000]}")


async def _output(*command: str) -> str:
    return (await _run(command, None))[1]


async def _run(command: list[str | Path] | tuple[str, ...], env: Mapping[str, str] | None) -> tuple[int, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
    except OSError as error:
        raise Missing(f"{command[0]}: {error}") from error
    try:
        async with asyncio.timeout(_PATIENCE_S):
            said, _ = await process.communicate()
    except TimeoutError:
        raise Missing(f"{' '.join(map(str, command))} takes more than {_PATIENCE_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode(errors="replace")
