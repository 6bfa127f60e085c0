"""What grows in a message from chunk to chunk, each kind by its own rule.

A growth is given one piece after the other with `add` and says with `shown` what they come to. A piece of another type
than is expected is passed over: it undoes nothing of what was said.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Protocol

Object = dict[str, Any]


class Growth(Protocol):
    """Something that is said piece by piece."""

    def add(self, piece: Any, /) -> None:
        """Take the next piece."""

    @property
    def shown(self) -> Any:
        """All that was said."""


class Pieces:
    """A string; joined only when it is asked for, since a long answer comes in thousands of pieces."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def add(self, piece: Any) -> None:
        if isinstance(piece, str):
            self._pieces.append(piece)

    @property
    def shown(self) -> str:
        if len(self._pieces) != 1:
            self._pieces = [_joined(self._pieces)]
        return self._pieces[0]


def _joined(pieces: list[str]) -> str:
    whole = "".join(pieces)
    try:
        whole.encode()
    except UnicodeEncodeError:  # a character may have been cut between its two UTF-16 halves
        return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return whole


class Name(Pieces):
    """The name of a call, which some servers say again with every fragment."""

    __slots__ = ()

    def add(self, piece: Any) -> None:
        if piece != self.shown:
            super().add(piece)


class Base64(Pieces):
    """Bytes in base64: cut anywhere, or each piece encoded by itself and so perhaps with padding at its end."""

    __slots__ = ()

    def add(self, piece: Any) -> None:
        if not piece:
            return
        last = self._pieces[-1] if self._pieces else ""
        if isinstance(piece, str) and last.endswith("="):
            try:
                piece = b64encode(b64decode(last[-4:], validate=True) + b64decode(piece, validate=True)).decode()
                self._pieces[-1] = last[:-4]
            except ValueError:
                pass  # no base64 then: what came is kept
        super().add(piece)


class Content:
    """The visible answer: a string, or a list of parts where some of them are no text."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[Pieces | Object] = [Pieces()]

    def add(self, piece: Any) -> None:
        for part in piece if isinstance(piece, list) else [piece]:
            if isinstance(part, dict):
                self._parts += part, Pieces()
            else:
                self._parts[-1].add(part)  # type: ignore[union-attr]  # the last one always is text

    @property
    def text(self) -> str:
        return "".join(part.shown for part in self._parts if isinstance(part, Pieces))

    @property
    def shown(self) -> str | list[Object]:
        if len(self._parts) == 1:
            return self.text
        parts = [{"type": "text", "text": part.shown} if isinstance(part, Pieces) else part for part in self._parts]
        return [part for part in parts if part.get("text") != ""]


class Gathered:
    """A list that grows by what is not in it yet: some servers send all of it again, or with every chunk."""

    __slots__ = ("_digests", "_values")

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._digests: set[bytes] = set()  # by what they are as JSON

    def add(self, piece: Any) -> None:
        for each in piece if isinstance(piece, list) else ():
            digest = sha256(json.dumps(each, sort_keys=True).encode()).digest()
            if digest not in self._digests:
                self._digests.add(digest)
                self._values.append(each)

    @property
    def shown(self) -> list[Any]:
        return [*self._values]


class Fields:
    """An object: fields that grow, each by the rule for its name, and others, of which the last is kept."""

    __slots__ = ("_fields", "_rules")

    def __init__(self, rules: Mapping[str, Callable[[], Growth]], **begun: Any) -> None:
        self._rules = rules
        self._fields: dict[str, Any] = begun

    def add(self, piece: Any) -> None:
        for key, value in piece.items() if isinstance(piece, dict) else ():
            if value is not None:
                self._say(key, value)

    def _say(self, key: str, value: Any) -> None:
        growth = self._fields.get(key)
        if not isinstance(growth, _GROWTHS):
            rule = self._rules.get(key) or _rule_for(value)
            if rule is None:
                self._fields[key] = value
                return
            growth = self._fields[key] = rule()
        growth.add(value)

    def growth(self, key: str) -> Any:
        """What grows under a name; None where nothing has been said."""
        return self._fields.get(key)

    @property
    def shown(self) -> Object:
        return {key: value.shown if isinstance(value, _GROWTHS) else value for key, value in self._fields.items()}


def _rule_for(value: Any) -> Callable[[], Growth] | None:
    """How a field grows that has no rule by its name."""
    if isinstance(value, dict):
        return nested
    is_list = isinstance(value, list) and all(isinstance(each, dict | str) for each in value)
    return Gathered if is_list else None


class Blocks:
    """Blocks of reasoning whose text comes in pieces, their signature after it: told apart by type, and index or id.

    Where an index is missing the last block goes on. Some servers give all blocks one index: a signed one is over.
    """

    __slots__ = ("_blocks", "_latest")

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._latest: dict[tuple[str, ...], _Block] = {}

    def add(self, piece: Any) -> None:
        for block in piece if isinstance(piece, list) else ():
            if isinstance(block, dict):
                self._add(block)

    def _add(self, fragment: Object) -> None:
        kind, given = str(fragment.get("type")), fragment.get("id")
        key = kind, str(fragment.get("index"))
        block = self._latest.get((*key, str(given)) if given else key)
        if block is None and given:
            block = self._latest.get(key)
            if block is not None and block.id is not None:
                block = None
        if block is None or not block.takes(fragment, is_last=block is self._blocks[-1]):
            block = _Block()
            self._blocks.append(block)
        block.add(fragment)
        self._latest[key] = block
        if given:
            self._latest[*key, str(given)] = block

    @property
    def shown(self) -> list[Object]:
        return [block.shown for block in self._blocks]


class _Block(Fields):
    """One block of reasoning."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_IN_BLOCK)

    @property
    def id(self) -> Any:
        return self._fields.get("id")

    def add(self, piece: Object) -> None:
        data = self._fields.get("data")
        if data is not None and piece.get("data") == data.shown:  # it comes again
            piece = piece | {"data": None}
        super().add(piece)

    def takes(self, fragment: Object, *, is_last: bool) -> bool:
        """Whether a fragment that is found to be of this block can be."""
        if self._fields.get("signature") and any(fragment.get(key) for key in _IN_BLOCK):
            return False
        # Without an index what is encrypted came whole.
        return fragment.get("index") is not None or bool(fragment.get("id")) or (is_last and not fragment.get("data"))


class ToolCalls:
    """Tool calls, each in fragments that say by their index of which call they are: the next one's begins it."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: list[Fields] = []

    def add(self, piece: list[Object]) -> None:
        for fragment in piece:
            if fragment["index"] == len(self._calls):
                kind = "custom" if "custom" in fragment else "function"
                self._calls.append(Fields(_IN_CALL, id=None, type=kind, **{kind: called(_INPUT[kind])}))
            self._calls[fragment["index"]].add({key: value for key, value in fragment.items() if key != "index"})

    @property
    def shown(self) -> list[Object]:
        return [call.shown for call in self._calls]


def called(field: str = "arguments") -> Fields:
    """What is called, and with what; ``field`` names that."""
    rules: dict[str, Callable[[], Growth]] = {"name": Name, field: Pieces}
    return Fields(rules, **{key: rule() for key, rule in rules.items()})


_INPUT = {"function": "arguments", "custom": "input"}  # where a call of a kind has what the model wrote for it
_IN_CALL: Mapping[str, Callable[[], Growth]] = {"function": called}
_IN_BLOCK: Mapping[str, Callable[[], Growth]] = {
    "text": Pieces,
    "summary": Pieces,
    "thinking": Pieces,
    "data": Base64,
}
_IN_AUDIO: Mapping[str, Callable[[], Growth]] = {"data": Base64, "transcript": Pieces}
_GROWTHS = (Pieces, Content, Gathered, Fields, Blocks, ToolCalls)


def nested() -> Fields:
    """An object within a message; gateways repeat there what they add to it."""
    return Fields(_WHEREVER)


def audio() -> Fields:
    """Spoken words, and what they are in writing."""
    return Fields(_IN_AUDIO)


REASONING_NAMES = ("reasoning_content", "reasoning", "reasoning_text", "thinking")  # what servers call it
_WHEREVER: Mapping[str, Callable[[], Growth]] = {
    **dict.fromkeys((*REASONING_NAMES, "refusal"), Pieces),
    **dict.fromkeys(("reasoning_details", "thinking_blocks"), Blocks),
    "audio": audio,
}
IN_MESSAGE: Mapping[str, Callable[[], Growth]] = {
    **_WHEREVER,
    "content": Content,
    "tool_calls": ToolCalls,
    "function_call": called,
}
