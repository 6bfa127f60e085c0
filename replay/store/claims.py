"""Which generation a key leads to."""

from __future__ import annotations

from importlib import resources

from replay.store import Claim
from replay.store.connection import Link
from replay.store.keys import Keys
from replay.wire import json

_SCRIPTS = resources.files("replay.store")
_CLAIM = _SCRIPTS.joinpath("claim.lua").read_text()
_RELEASE = _SCRIPTS.joinpath("release.lua").read_text()


class ClaimCalls:
    """The part of a ValkeyStore that is about claims."""

    _keys: Keys
    _appends: Link
    _reads: Link

    async def claim(self, key: str, claim: Claim, *, ttl_ms: int) -> Claim:
        """Bind a key, unless it is bound by this attempt or a later one; what it is bound to."""
        bound = await self._appends.call(
            "EVAL", _CLAIM, 1, self._keys.claim(key), _written(claim), claim.attempt, ttl_ms
        )
        return _read(bound)

    async def claimed(self, key: str) -> Claim | None:
        """What a key is bound to."""
        bound = await self._reads.ask("GET", self._keys.claim(key))
        return None if bound is None else _read(bound)

    async def release(self, key: str, generation_id: str) -> None:
        """Unbind a key that is bound to a generation."""
        await self._appends.call(*self._releasing(key, generation_id))

    def _releasing(self, key: str, generation_id: str) -> tuple[str | int, ...]:
        return "EVAL", _RELEASE, 1, self._keys.claim(key), generation_id


def _written(claim: Claim) -> bytes:
    first = {"id": claim.generation_id, "body": claim.fingerprint}
    later = {"attempt": claim.attempt, "previous": claim.previous}
    return json.dumps(first | later if claim.attempt else first)


def _read(raw: bytes) -> Claim:
    bound = json.loads(raw)
    return Claim(bound["id"], bound["body"], bound.get("attempt", 0), bound.get("previous"))
