"""Which generation a key leads to, and what a retry may have been the first try of."""

from __future__ import annotations

from importlib import resources

from replay.store import Claim
from replay.store.connection import Link, at_once
from replay.store.keys import Keys
from replay.wire import json

_SCRIPTS = resources.files("replay.store")
_CLAIM = _SCRIPTS.joinpath("claim.lua").read_text()
_RELEASE = _SCRIPTS.joinpath("release.lua").read_text()
_TRIES = 32  # that are remembered of one call; protects from one that is made all the time
_TRIES_MS = 3_600_000  # no client waits longer; what has ended is forgotten at once


class ValkeyClaims:
    """The part of a ValkeyStore that leads to generations."""

    _keys: Keys
    _appends: Link
    _reads: Link

    async def claim(self, key: str, claim: Claim, *, ttl_ms: int) -> Claim:
        """Bind a key, unless it is bound by another claim than the one that this takes over; what it is bound to."""
        bound = await self._appends.call(
            "EVAL", _CLAIM, 1, self._keys.claim(key), _written(claim), claim.after or "", ttl_ms
        )
        return _read(bound)

    async def claimed(self, key: str) -> Claim | None:
        """Return what a key is bound to."""
        bound = await self._reads.ask("GET", self._keys.claim(key))
        return None if bound is None else _read(bound)

    async def release(self, key: str, mark: str) -> None:
        """Unbind a key that is bound by a claim."""
        await self._appends.call(*self._releasing(key, mark))

    def _releasing(self, key: str, mark: str) -> tuple[str | int, ...]:
        return "EVAL", _RELEASE, 1, self._keys.claim(key), mark

    async def note_try(self, digest: str, generation_id: str, *, created_ms: int) -> None:
        """Note what a call has started."""
        key = self._keys.tries(digest)
        await self._appends.ready()
        await at_once(
            self._appends,
            ("ZADD", key, created_ms, generation_id),
            ("ZREMRANGEBYRANK", key, 0, -_TRIES - 1),
            ("PEXPIRE", key, _TRIES_MS),
        )

    async def forget_try(self, digest: str, generation_id: str) -> None:
        """Note no more what a call has started."""
        await self._appends.call("ZREM", self._keys.tries(digest), generation_id)

    async def tries(self, digest: str) -> list[str]:
        """Return what calls with this digest have started, oldest first."""
        return [name.decode() for name in await self._reads.ask("ZRANGE", self._keys.tries(digest), 0, -1)]

    async def take_try(self, generation_id: str, *, hold_ms: int) -> bool:
        """Take a generation for some time; whether nobody else has."""
        answer = await self._appends.call("SET", self._keys.taken(generation_id), "1", "NX", "PX", hold_ms)
        return answer is not None


def _written(claim: Claim) -> bytes:
    first = {"id": claim.generation_id, "body": claim.fingerprint, "token": claim.mark}
    later = {"attempt": claim.attempts_before, "previous": claim.previous, "after": claim.after}
    return json.dumps(first | later if claim.attempts_before else first)


def _read(raw: bytes) -> Claim:
    bound = json.loads(raw)
    mark = bound.get("token", bound["id"])  # earlier versions had none
    return Claim(bound["id"], bound["body"], mark, bound.get("attempt", 0), bound.get("previous"), bound.get("after"))
