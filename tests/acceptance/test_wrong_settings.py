"""Settings that cannot be used: one line that names the flag, exit code 2, and nothing has been started."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support.deadlines import within
from support.ports import free_port

FOREIGN = re.compile(r"REPLAY_|OPENAI_|.*_PROXY$", re.IGNORECASE)
SECRET = "hunter22-secret"


class Outcome(NamedTuple):
    code: int
    stdout: str
    lines: list[str]  # of stderr


async def serve(directory: Path, *flags: str, **env: str) -> Outcome:
    """`replay serve` on a free port, with its data in `directory`."""
    clean = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "replay", "serve", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**clean, "REPLAY_PORT": "0", **env},
        cwd=directory,
    )
    try:
        stdout, stderr = await within("the end of a node that cannot start", process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Outcome(process.returncode, stdout.decode(), stderr.decode().splitlines())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--port", "70000"], "--port: expected a number from 0 to 65535, got 70000"),
        (["--port", "http"], "--port: expected a whole number, got 'http'"),
        (["--lease-s", "0"], "--lease-s: expected at least 0.2, got 0.0"),
        (["--lease-s", "nan"], "--lease-s: expected at least 0.2, got nan"),
        (["--host", "http://localhost"], "--host: expected "),
        (["--host", "no-such-host.invalid"], "--host, --port: cannot listen on no-such-host.invalid:0 ("),
        (["--host", "a..b"], "--host, --port: cannot listen on a..b:0 ("),
        (["--host", "203.0.113.1"], "--host, --port: cannot listen on 203.0.113.1:0 (Cannot assign"),
        (["--valkey-url", "localhost:6379"], "--valkey-url: expected valkey://"),
        (["--valkey-url", "unix://"], "--valkey-url: expected valkey://"),
        (["--valkey-url", "unix://valkey.sock"], "or unix:///path[?db=database]"),
        (["--valkey-url", "valkey://h/one"], "--valkey-url: expected valkey://"),
        (["--valkey-url", "valkey://h/1/2"], "--valkey-url: expected valkey://"),
        (["--valkey-url", "valkeys://h?ssl_ca_certs=/none.pem"], "--valkey-url: a file that it names cannot be read"),
        (["--upstream-url", "localhost:11434/v1"], "--upstream-url: expected http:// or https:// before the host"),
        (["--upstream-url", "api.example.com/v1"], "as in http://api.example.com/v1"),
        (["--upstream-url", "ftp://example.com"], "--upstream-url: expected a URL such as http://localhost:11434/v1"),
        (["--upstream-url", "http://"], "--upstream-url: expected a URL"),
        (["--upstream-url", "http://h:99999/v1"], "--upstream-url: expected a URL"),
        (
            ["--upstreams", "a*"],
            "--upstreams: expected a pattern, a base URL and, where it asks for a key, a variable's",
        ),
        (["--upstreams", "a* localhost:1/v1"], "in row 1, as in gpt-* https://api.openai.com/v1 OPENAI_API_KEY"),
        (["--upstreams", "a* http://h/v1; b* http:///v1"], "--upstreams, row 2: expected a URL"),
        (["--upstreams", "a* http://h/v1 NO_KEY"], "--upstreams: expected a key in the variable NO_KEY"),
        (["--cors-origins", "app.example.com"], "--cors-origins: expected origins"),
        (["--embedded-fsync", "never"], "--embedded-fsync: expected everysec or always, got 'never'"),
        (["--ttl-s", "60", "--max-ttl-s", "30"], "--ttl-s: expected at most --max-ttl-s, which is 30, got 60"),
        (["--data-dir", ""], "--data-dir: expected a path, got nothing"),
        (["--workers", "2", "--upstream-url", "h:1/v1"], "--upstream-url: expected http:// or https://"),
        (["--no-such-flag=1"], "unrecognized arguments: --no-such-flag"),
        (["--port"], "argument --port: expected one argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_a_setting_that_cannot_be_used_is_one_line_and_starts_nothing(flags, told, tmp_path):
    outcome = await serve(tmp_path, *flags)
    assert (outcome.code, outcome.stdout, len(outcome.lines)) == (2, "", 1), outcome
    assert outcome.lines[0].startswith("replay")
    assert told in outcome.lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("REPLAY_PORT", "x", "REPLAY_PORT: expected a whole number"),
        ("OPENAI_BASE_URL", "localhost:1/v1", "OPENAI_BASE_URL: expected http:// or https://"),
        ("OPENAI_API_KEY", f"{SECRET}\n", "OPENAI_API_KEY: expected a key"),
        ("REPLAY_UPSTREAM_API_KEY", f"{SECRET} x", "REPLAY_UPSTREAM_API_KEY: expected a key"),
        ("REPLAY_UPSTREAM_URL", SECRET, "--upstream-url: expected a URL"),
        ("REPLAY_UPSTREAM_URL", f"user:{SECRET}@h/v1", "--upstream-url: expected a URL"),
        ("REPLAY_UPSTREAM_URL", f"ftp://user:{SECRET}@h/v1", "--upstream-url: expected a URL"),
        ("REPLAY_UPSTREAMS", f"a* http:/h {SECRET}", "--upstreams: expected a pattern"),
        ("REPLAY_UPSTREAMS", f"a* http://h/v1 {SECRET}", "--upstreams: expected a key"),
        ("REPLAY_VALKEY_URL", f"redis//:{SECRET}@h", "--valkey-url: expected valkey://"),
        ("REPLAY_CORS_ORIGINS", f"https://user:{SECRET}@h", "--cors-origins: expected"),
    ],
)
async def test_a_variable_is_named_as_a_flag_is_and_its_secrets_are_not_shown(variable, value, told, tmp_path):
    outcome = await serve(tmp_path, **{variable: value})
    assert (outcome.code, outcome.stdout, len(outcome.lines)) == (2, "", 1), outcome
    assert told in outcome.lines[0]
    assert SECRET not in outcome.lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_directory_that_cannot_be_written_to_is_one_line(workers, tmp_path):
    (tmp_path / "file").touch()
    outcome = await serve(tmp_path, "--data-dir", "file/data", "--workers", workers)
    assert (outcome.code, outcome.stdout, len(outcome.lines)) == (2, "", 1), outcome
    assert re.search(r"--data-dir .*/file/data: expected a directory .*\(Not a directory\)", outcome.lines[0])


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
async def test_a_port_that_is_taken_is_told_before_anything_starts(host, workers, tmp_path):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, free_port()), family=family) as other:
        port = other.getsockname()[1]
        outcome = await serve(tmp_path, "--host", host, "--port", str(port), "--workers", workers)
    # it may be free the next time, so this is no wrong setting
    assert (outcome.code, outcome.stdout, len(outcome.lines)) == (1, "", 1), outcome
    assert outcome.lines[0].startswith(f"replay: --host, --port: cannot listen on {host}:{port} (Address already in")
    assert list(tmp_path.iterdir()) == []
