"""nginx with nchan, which keeps messages in shared memory or in Redis.

Its locations are those of nchan's manual: one to publish, one for subscribers that want what comes from now on, one
for those that want all. A message's id is what the event's `id:` line says; a subscriber resumes with it as
`Last-Event-ID`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from support.deadlines import DeadlineMissed, eventually

from . import installing
from .peer import Missing, Peer, Program, http_request
from .publisher import Publisher, Refused, http_answer

_CONFIGURATION = """\
load_module {module};
daemon off;
pid nginx.pid;
{user}
worker_processes 1;
worker_rlimit_nofile {open_files};
error_log stderr error;

events {{
    worker_connections 20000;
    multi_accept on;
}}

http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_buffer_size 64k;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;

    nchan_shared_memory_size 1024M;
    nchan_message_buffer_length 20000;
    nchan_message_timeout 1h;
{redis}
    server {{
        listen 127.0.0.1:{port} backlog=8192 reuseport;

        location ~ ^/publish/([\\w-]+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
            {pass_on}
        }}
        location ~ ^/new/([\\w-]+)$ {{
            nchan_subscriber eventsource;
            nchan_subscriber_first_message newest;
            nchan_channel_id $1;
            {pass_on}
        }}
        location ~ ^/all/([\\w-]+)$ {{
            nchan_subscriber eventsource;
            nchan_subscriber_first_message oldest;
            nchan_channel_id $1;
            {pass_on}
        }}
    }}
}}
"""
_REDIS = """
    upstream valkey {{
        nchan_redis_server {url};
        nchan_redis_storage_mode {mode};
    }}
"""


class Nchan(Peer):
    """Messages in the shared memory of nginx."""

    name = "nginx + nchan"
    replays = True
    resumes = True
    _mode: ClassVar[str | None] = None  # of its storage in Redis

    @classmethod
    async def install(cls) -> None:
        await installing.nchan_module()

    async def _start(self, directory: Path) -> None:
        module, nginx = await installing.nchan_module(), installing.program("nginx")
        self.versions = await installing.nchan_versions()
        (directory / "nginx.conf").write_text(self._configuration(module, directory))
        command = [nginx or "nginx", "-e", "stderr", "-p", f"{directory}/", "-c", "nginx.conf"]
        master = await self._run("nginx master", command, directory)
        self._stack.callback(master.stop)
        await self._ready(master)

    def _configuration(self, module: Path, directory: Path) -> str:
        redis = ""
        if self._mode is not None:
            valkey = self._run_valkey(directory)
            redis = _REDIS.format(url=f"redis://127.0.0.1:{valkey.port}", mode=self._mode)
        return _CONFIGURATION.format(
            module=module,
            user="user root;" if os.getuid() == 0 else "",  # nobody else may enter the directory
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            port=self.port,
            redis=redis,
            pass_on="nchan_redis_pass valkey;" if redis else "",
        )

    async def _ready(self, master: Program) -> None:
        """Wait for the worker, and until it takes a message: it connects to Redis after it has begun to listen."""

        async def worker() -> list[int]:
            return master.children()

        async def takes() -> bool:
            try:
                async with Publisher(self.port, http_answer) as publisher:
                    await publisher.ask(self._publication("ready", b"?"))
            except (OSError, Refused):
                return False
            return True

        try:
            self._pids["nginx worker"] = (await eventually("a worker of nginx", worker))[0]
            await eventually("nchan to take a message", takes)
        except DeadlineMissed as missed:
            raise Missing(f"{missed}; {master.log[-500:]}") from missed

    def _subscription(self, stream: str, replay: bool, after: str | None) -> tuple[str, Mapping[str, str]]:
        headers = {"Last-Event-ID": after} if after is not None else {}
        return f"/{'all' if replay else 'new'}/{stream}", headers

    def _publication(self, stream: str, data: bytes) -> bytes:
        return http_request("POST", f"/publish/{stream}", self.port, {"Content-Type": "text/plain"}, data)


class NchanRedis(Nchan):
    """Messages in Valkey, so that several nginx servers may share them."""

    name = "nginx + nchan, Redis store"
    subscribes_at_once = False  # the answer to a channel's first subscriber does not wait for its Redis subscription
    _mode = "distributed"


class NchanBackup(NchanRedis):
    """Messages in shared memory, and in Valkey for the next start."""

    name = "nginx + nchan, Redis backup"
    _mode = "backup"
