"""The dialect of chat completions, and of the legacy ones: chunks with `choices`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from replay.model.transcript import GROWING
from replay.wire.chat import as_index, says_all, strings_in_parts, text_in
from replay.wire.dialect import Object, Path, Translator
from replay.wire.failures import error_in
from replay.wire.noise import is_heartbeat_object

# What all chunks of a stream share, or, as obfuscation, means nothing.
_ENVELOPE = frozenset(
    ("id", "object", "created", "model", "system_fingerprint", "service_tier", "provider", "obfuscation")
)
_JUDGED = frozenset(("type", "object", "error", "base_resp"))


class ChatDialect:
    """See `Dialect`."""

    is_numbered = False

    def recognises(self, chunk: Object) -> bool:
        return True

    def translator(self) -> Translator:
        return _AsItIs()

    def unnumbered(self, raw: bytes) -> bytes:
        return raw

    def template_string(self, chunk: Object) -> tuple[str, bool] | None:
        if not self.may_repeat(chunk) or chunk.get("usage"):  # those after it would count as much
            return None
        strings = list(_strings(chunk))
        candidates = [string for string in strings if string[1]] or strings
        if len(candidates) != 1:
            return None
        key, _, is_visible = candidates[0]
        return key, is_visible and as_index(chunk["choices"][0].get("index")) in (None, 0)

    def growing_strings(self, chunk: Object) -> Iterator[str]:
        return (string for _, string, _ in _strings(chunk))

    def may_repeat(self, chunk: Object) -> bool:
        choices = chunk.get("choices")
        if chunk.get("error") or not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            return False
        (choice,) = choices
        return not says_all(choice) and not choice.get("finish_reason") and choice.get("logprobs") is None

    def may_be_joined(self, chunk: Object) -> bool:
        """It may not where something else grows beside the string, or where each chunk has a call of its own."""
        delta = chunk["choices"][0].get("delta")
        if not isinstance(delta, dict):
            return True
        return all(
            not isinstance(value, list | dict)
            or not value
            or (key == "content" and any(strings_in_parts(value)))
            or (key == "tool_calls" and all(map(_names_its_call, value)))
            or key == "function_call"
            for key, value in delta.items()
        )

    def is_judged(self, path: Path) -> bool:
        return path[2] in ("index", "finish_reason", "error") if path[0] == "choices" else path[0] in _JUDGED

    def is_replaced(self, path: Path) -> bool:
        return path[0] != "choices" or path[2] not in ("delta", "text")

    def visible_text(self, chunk: Object) -> str:
        return text_in(chunk)

    def is_plain(self, chunk: Object) -> bool:
        choices = chunk["choices"]
        if len(choices) != 1 or any(value is not None for value in further_fields(chunk).values()):
            return False
        choice = choices[0]
        delta = choice.get("delta")
        if isinstance(delta, dict):
            beside = [value for key, value in choice.items() if key not in ("index", "delta")]
            beside += [value for key, value in delta.items() if key != "content" or not isinstance(value, str)]
        else:
            beside = [value for key, value in choice.items() if key not in ("index", "text")]
        return all(value is None for value in beside)

    def carried(self, chunk: Object) -> Object:
        choices = {"choices": chunk["choices"]} if "choices" in chunk else {}
        return choices | further_fields(chunk)

    def error_in(self, chunk: Object, name: bytes) -> Any:
        return error_in(chunk, name)

    def is_kept(self, chunk: Object, name: bytes, *, is_error: bool) -> bool:
        return bool(chunk.get("choices")) if is_error else not is_heartbeat_object(chunk, name)

    def is_last(self, chunk: Object) -> bool:
        """None is: some servers go on after every sign of an end."""
        return False

    def is_of_protocol(self, chunk: Object) -> bool:
        """Choices prove it, if only none of them."""
        return "choices" in chunk


CHAT = ChatDialect()


class _AsItIs:
    """What is chat already."""

    def read(self, chunk: Object) -> Object:
        return chunk


def further_fields(chunk: Object) -> Object:
    """What a chunk carries beside the envelope and the choices."""
    return {key: value for key, value in chunk.items() if key not in _ENVELOPE and key != "choices"}


def _strings(chunk: Object) -> Iterator[tuple[str, str, bool]]:
    """The strings that go on from one chunk to the next: key, string, and whether it is visible."""
    choice = chunk["choices"][0]
    delta = choice.get("delta")
    if not delta and isinstance(choice.get("text"), str):
        yield "text", choice["text"], True
    if isinstance(delta, str) and delta:
        yield "delta", delta, True
    if not isinstance(delta, dict):
        return
    for key in GROWING:
        if isinstance(delta.get(key), str):
            yield key, delta[key], key == "content"
    yield from strings_in_parts(delta.get("content"))
    calls = delta.get("tool_calls")
    # Without its index a fragment does not say which call grows.
    if isinstance(calls, list) and len(calls) == 1 and isinstance(calls[0], dict) and "index" in calls[0]:
        function = calls[0].get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield "arguments", function["arguments"], False


def _names_its_call(fragment: Any) -> bool:
    """Whether fragments like this one are all of one call."""
    function = fragment.get("function") if isinstance(fragment, dict) else None
    return isinstance(function, dict) and bool(fragment.get("id") or not function.get("name"))
