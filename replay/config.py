"""Every setting of the service: once, with its unit, its default and the reason for it.

A setting is a flag of ``replay serve`` (``--lease-s 15``) and an environment variable
(``REPLAY_LEASE_S=15``); the flag wins.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from replay.errors import InvalidSetting
from replay.redaction import NO_SECRETS, secrets_in_url

ENV_PREFIX = "REPLAY_"


def _setting(
    default: Any,
    help: str,
    *,
    secret: bool = False,
    least: float | None = None,
    most: float = sys.maxsize,
    choices: Sequence[str] = (),
    shape: str = "",
) -> Any:
    """A setting; a secret has no flag, since every user of a machine can read its process list.

    ``shape`` is the expression that it, or each member of a list, has to match.
    """
    limits = {"least": least, "most": most, "choices": choices, "shape": shape}
    return field(default=default, metadata={"help": help, "secret": secret, **limits})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a node is told; deploy/README.md lists them with the same words."""

    host: str = _setting(
        "127.0.0.1",
        "address to listen on; loopback, because the service asks nobody who they are",
        shape=r"[^\s/]+",
    )
    port: int = _setting(8080, "port to listen on; 0 takes a free one", least=0, most=65_535)
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        "names, `*.example.com` or `*`, that may stand in `Host` beside --host and loopback's; on loopback always, "
        "elsewhere once one is named here. Any other may be that of a page which had its own name mean this machine",
        shape=r"\*|(\*\.)?[\w.:-]+",
    )
    cors_origins: tuple[str, ...] = _setting(
        (),
        "origins whose pages may call from browsers, such as https://app.example.com, or `*`; without it only the "
        "service's own",
        shape=r"\*|[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@*]+",
    )
    workers: int = _setting(1, "processes that share the port and the Valkey; one keeps at most one core busy", least=1)

    valkey_url: str | None = _setting(
        None, "valkey://, valkeys:// (TLS) or unix:// URL of a Valkey 8.0 or newer; without one the node starts its own"
    )
    key_prefix: str = _setting(
        "replay:",
        "what the names of all keys and channels begin with; services that share a Valkey have one each",
        shape=r"[\w.:-]+",
    )
    data_dir: Path = _setting(Path("replay-data"), "where the node's own Valkey keeps its append-only file")
    embedded_fsync: str = _setting(
        "everysec",
        "appendfsync of the node's own Valkey: everysec (a power cut may lose a second) or always",
        choices=("everysec", "always"),
    )

    upstream_url: str | None = _setting(
        None,
        "base URL of the OpenAI-compatible upstream, with /v1; else OPENAI_BASE_URL; else the model `demo` answers",
    )
    upstream_api_key: str | None = _setting(None, "key for the upstream; else OPENAI_API_KEY", secret=True)
    upstreams: str | None = _setting(
        None,
        "further upstreams by model: rows of a pattern, a base URL and, where it asks for a key, the environment "
        "variable that holds it, separated by `;`; the first row that fits answers, --upstream-url all others",
    )
    upstream_credentials: str = _setting(
        "own",
        "whose key the upstream sees: own (the service's), or caller (the one each request brings)",
        choices=("own", "caller"),
    )
    upstream_responses: str = _setting(
        "auto",
        "whether upstreams know the Responses API: yes, no (requests are translated), or auto: it is found out",
        choices=("auto", "yes", "no"),
    )
    upstream_connect_timeout_s: float = _setting(10.0, "seconds to reach the upstream", least=0.001)
    upstream_idle_timeout_s: float = _setting(
        300.0, "seconds without a byte from the upstream, comments included; long prompts take minutes", least=0.001
    )
    upstream_retries: int = _setting(
        2,
        "further tries before the first byte: refused, 408, 409, 429 and 5xx; none under /v1, where clients try again",
        least=0,
    )
    demo_tokens_per_second: float = _setting(30.0, "pace of the model `demo`, about a fast reader's", least=0.001)

    ttl_s: int = _setting(86_400, "seconds a generation is kept after its end, where the caller names none", least=1)
    max_ttl_s: int = _setting(2_592_000, "the longest ttl a caller may ask for: nothing lives for ever", least=1)
    idempotency_ttl_s: int = _setting(86_400, "seconds an Idempotency-Key or a Replay-Job is remembered", least=1)

    attach_retries: str = _setting(
        "on",
        "on or off: whether a call that says it is a retry gets what its first try has started, while that is live and "
        "nobody reads it",
        choices=("on", "off"),
    )

    max_body_bytes: int = _setting(8 << 20, "request body; protects the node's memory", least=1024)
    max_body_values: int = _setting(
        250_000,
        "JSON values in a request body; each takes some hundred bytes of memory, and time to look at",
        least=100,
    )
    max_bodies_bytes: int = _setting(
        256 << 20,
        "what is beyond 64 KiB of all request bodies that are here; callers above it are told to come back",
        least=1024,
    )
    request_timeout_s: float = _setting(
        30.0,
        "seconds a request's head may take to arrive, and then its body; protects from callers that hold them back",
        least=0.001,
    )
    idle_connection_s: float = _setting(
        75.0, "seconds a connection may wait for a request; proxies keep theirs to a node for up to 60", least=0.001
    )
    max_metadata_bytes: int = _setting(16 << 10, "a generation's metadata as JSON; every list carries it", least=2)
    max_kept_request_bytes: int = _setting(
        256 << 10,
        "a request kept beside its generation, for its messages and for responses that continue it; not if larger",
        least=0,
    )
    max_chunk_bytes: int = _setting(4 << 20, "one chunk of an upstream; protects from an endless line", least=1024)
    max_generation_bytes: int = _setting(
        32 << 20, "one generation's log in memory, where a node keeps the logs it serves", least=1024
    )
    max_pending_bytes: int = _setting(
        4 << 20,
        "memory for what Valkey has not acknowledged yet of one generation; then the upstream waits",
        least=1024,
    )
    max_generations: int = _setting(10_000, "generations a node produces at once; protects from a runaway", least=1)
    cache_bytes: int = _setting(256 << 20, "memory for logs that nobody here produces or watches", least=0)

    keepalive_s: float = _setting(15.0, "seconds of silence before a keep-alive; proxies cut at 30 to 60", least=0.001)
    head_patience_s: float = _setting(
        10.0,
        "seconds of the upstream's silence after which a streaming call is answered with its head, and a later refusal "
        "stands in the stream; clients that have nothing by then call again. 0: at once",
        least=0,
    )
    retry_ms: int = _setting(1000, "what `retry:` tells an EventSource to wait before it comes back", least=0)
    write_buffer_bytes: int = _setting(
        64 << 10, "what may wait in the node for one subscriber before it counts as slow", least=1024
    )
    write_deadline_s: float = _setting(
        30.0, "seconds a slow subscriber may take for that buffer before it is cut", least=0.001
    )

    lease_s: float = _setting(
        15.0, "seconds after which a silent node counts as dead and its generations are ended", least=0.2
    )
    store_timeout_s: float = _setting(
        5.0, "seconds Valkey may take for one answer before the connection is replaced", least=0.05
    )
    store_outage_s: float = _setting(
        60.0, "seconds of Valkey's absence after which a running generation fails as store_unavailable", least=0.05
    )
    heal_window_s: float = _setting(
        10.0, "seconds a log is kept for repair after its end; an everysec file may lose the last one", least=0
    )

    drain_grace_s: float = _setting(20.0, "seconds own generations get to finish after SIGTERM", least=0)
    drain_spread_s: float = _setting(
        3.0, "seconds over which subscribers are released, so that they do not return at once", least=0
    )

    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR", choices=("DEBUG", "INFO", "WARNING", "ERROR"))

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            wrong = _wrong_in(setting.metadata, value)
            if wrong is not None:
                raise InvalidSetting(f"{flag(setting)}: {wrong}")


def _wrong_in(limits: Mapping[str, Any], value: Any) -> str | None:
    """What was expected of a value and what came; None where it can be used."""
    least, most, choices, shape = (limits[name] for name in ("least", "most", "choices", "shape"))
    if least is not None and not least <= value <= most:
        expected = f"at least {least}" if most == sys.maxsize else f"a number from {least} to {most}"
        return f"expected {expected}, got {value}"
    if choices and value not in choices:
        return f"expected {' or '.join(choices)}, got {value!r}"
    members = (value,) if isinstance(value, str) else value
    wrong = next((member for member in members if not re.fullmatch(shape, member)), None) if shape else None
    return None if wrong is None else f"expected {limits['help']}; got {NO_SECRETS.log_line(repr(wrong))}"


def flag(setting: Field[Any]) -> str:
    """The command-line spelling of a setting."""
    return "--" + setting.name.replace("_", "-")


def variable(setting: Field[Any]) -> str:
    """The environment's spelling of a setting."""
    return ENV_PREFIX + setting.name.upper()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` one flag per setting that is not a secret."""
    for setting in fields(Settings):
        if setting.metadata["secret"]:
            continue
        default = "" if setting.default in (None, (), MISSING) else f" (default {in_words(setting)})"
        parser.add_argument(
            flag(setting), dest=setting.name, metavar="…", help=setting.metadata["help"].replace("%", "%%") + default
        )


_BYTES = {"MiB": 1 << 20, "KiB": 1 << 10}
_SECONDS = {"d": 86_400, "h": 3_600, "min": 60}


def in_words(setting: Field[Any]) -> str:
    """A default as it is given, and, where that is long, as people say it."""
    default: Any = setting.default
    units = _BYTES if setting.name.endswith("_bytes") else _SECONDS if setting.name.endswith("_s") else {}
    unit = next((unit for unit, size in units.items() if default >= size and default % size == 0), None)
    return str(default) if unit is None else f"{default}: {default / units[unit]:,.0f} {unit}"


def load(flags: Mapping[str, str | None], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings from flags (by setting name, None where not given), then the environment, then the defaults.

    Raises InvalidSetting for a value that does not parse, is out of range, or contradicts another.
    """
    hints = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        text = flags.get(setting.name)
        source = flag(setting)
        if text is None:
            text, source = environ.get(variable(setting)) or None, variable(setting)
        if text is not None:
            values[setting.name] = _parse(hints[setting.name], text, source)
    settings = Settings(**values)
    if "ttl_s" in values and settings.ttl_s > settings.max_ttl_s:  # a default gives way by itself
        raise InvalidSetting(
            f"--ttl-s: expected at most --max-ttl-s, which is {settings.max_ttl_s}, got {settings.ttl_s}"
        )
    return settings


def secrets(settings: Settings, environ: Mapping[str, str] = os.environ) -> set[str]:
    """The keys and passwords that the settings name, and those of proxies, as they are sent."""
    texts = {environ.get("OPENAI_API_KEY")}
    texts |= {getattr(settings, setting.name) for setting in fields(settings) if setting.metadata["secret"]}
    rows = (settings.upstreams or "").replace(";", " ").split()
    texts |= {environ.get(word) for word in rows}  # a row names the variable that holds its key
    proxies = [value for name, value in environ.items() if name.lower().endswith("_proxy")]
    urls = [settings.valkey_url, settings.upstream_url, environ.get("OPENAI_BASE_URL"), *rows, *proxies]
    for url in filter(None, urls):
        texts |= secrets_in_url(url)
    return {text for text in texts if text}


def _parse(hint: Any, text: str, source: str) -> Any:
    if hint == tuple[str, ...]:
        return tuple(re.findall(r"[^\s,]+", text))
    kinds = {int: "a whole number", float: "a number", Path: "a path"}
    kind = next((kind for kind in kinds if hint is kind), str)
    if not text:
        raise InvalidSetting(f"{source}: expected {kinds.get(kind, 'a value')}, got nothing")
    try:
        return kind(text)
    except ValueError:
        raise InvalidSetting(f"{source}: expected {kinds[kind]}, got {text!r}") from None
