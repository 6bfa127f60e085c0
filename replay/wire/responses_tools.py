"""The tools of a Responses request, as a chat request can name them.

A chat request knows functions and custom tools, each by one name. So the tools of a namespace go over under a name that
holds both (`crm__get_customer`), and their calls come back under the names that the request has for them. A tool that
the server would run by itself (`web_search`) is left out, unless the request demands its use.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from replay.errors import InvalidRequest
from replay.wire import json
from replay.wire.expect import Object, given, object_in, objects_in, one_of, string_in, unexpected

_LONGEST_NAME = 64  # what OpenAI takes, and servers that are like it
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_KIND = re.compile(r"[a-z0-9_]{1,64}")
_MOST_KINDS = 32  # left out: a header names them
_MOST_NAMED = 64 << 10  # bytes of names in namespaces: they stand in the log's first entry, which lists read
_ONLY_CHAT = "since the upstream only knows chat completions"


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request."""

    listed: list[Object]  # as a chat request has them
    ignored: list[str]  # the types of those that are left out
    named: dict[tuple[str, str], str]  # the names in the chat, by the namespace and the name there

    @property
    def namespaced(self) -> dict[str, list[str]]:
        """The namespaces and the names there, by the name in the chat."""
        return {flat: [*pair] for pair, flat in self.named.items()}

    def name(self, holder: Object, path: str) -> str:
        """What a tool is named in the chat that is called, or chosen; it may be one of an earlier request's."""
        name = string_in(holder, "name", path)
        if holder.get("namespace") is None:
            return name
        namespace = string_in(holder, "namespace", path)
        return self.named.get((namespace, name)) or _flat(namespace, name)

    def choice(self, choice: Any) -> Any:
        """What `tool_choice` is in the chat."""
        if isinstance(choice, dict):
            return self._allowed(choice) if choice.get("type") == "allowed_tools" else self._one(choice)
        if not isinstance(choice, str | None):
            raise unexpected("tool_choice", "a string or an object", choice)
        if choice == "required" and self.ignored and not self.listed:
            raise _demanded(self.ignored)
        return choice

    def _one(self, choice: Object) -> Object:
        kind = choice.get("type")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise unexpected("tool_choice.type", f"one of {', '.join(_KINDS)}, allowed_tools, {_ONLY_CHAT}", kind)
        return _chosen(kind, self.name(choice, "tool_choice"))

    def _allowed(self, choice: Object) -> Object | str:
        mode = string_in(choice, "mode", "tool_choice")
        allowed: list[Object] = []
        ignored: list[str] = []
        for tool, path in objects_in(choice, "tools", "tool_choice"):
            kind = string_in(tool, "type", path)
            if kind == "namespace":
                allowed += self._of_namespace(string_in(tool, "name", path))
            elif kind in _KINDS:
                allowed.append(_chosen(kind, self.name(tool, path)))
            else:
                ignored.append(kind)
        if ignored and not allowed:
            if mode == "required":
                raise _demanded(ignored)
            return "none"
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}

    def _of_namespace(self, namespace: str) -> Iterator[Object]:
        names = {flat for (other, _), flat in self.named.items() if other == namespace}
        for tool in self.listed:
            kind = tool["type"]
            if tool[kind]["name"] in names:
                yield _chosen(kind, tool[kind]["name"])


def tools_of(body: Object) -> Tools:
    """The tools of a request; raises InvalidRequest for what is no list of tools."""
    each = [*_each(body)]
    taken = {name for namespace, tool, _ in each if namespace is None and isinstance(name := tool.get("name"), str)}
    tools = Tools([], [], {})
    for namespace, tool, path in each:
        kind = string_in(tool, "type", path)
        if kind not in _KINDS:
            _ignore(tools.ignored, kind, path)
            continue
        name = string_in(tool, "name", path)
        if namespace is not None:
            name = tools.named.setdefault((namespace, name), _flat(namespace, name, taken))
            taken.add(name)
        tools.listed.append({"type": kind, kind: {"name": name, **_KINDS[kind](tool, path)}})
    if len(json.dumps(tools.namespaced)) > _MOST_NAMED:
        raise InvalidRequest(f"tools: expected at most {_MOST_NAMED} bytes of names in namespaces")
    return tools


def _each(body: Object) -> Iterator[tuple[str | None, Object, str]]:
    """The tools with their namespaces and paths."""
    for tool, path in objects_in(body, "tools"):
        if tool.get("type") != "namespace":
            yield None, tool, path
            continue
        namespace = string_in(tool, "name", path)
        for inner, inner_path in objects_in(tool, "tools", path):
            yield namespace, inner, inner_path


def _ignore(ignored: list[str], kind: str, path: str) -> None:
    if _KIND.fullmatch(kind) is None:
        raise unexpected(f"{path}.type", "the type of a tool", kind)
    if kind not in ignored:
        ignored.append(kind)
    if len(ignored) > _MOST_KINDS:
        raise InvalidRequest(f"tools: expected at most {_MOST_KINDS} types besides {', '.join(_KINDS)}, {_ONLY_CHAT}")


def _flat(namespace: str, name: str, taken: Container[str] = ()) -> str:
    """One name for both: always the same where it is not taken, and of no other pair where it is."""
    joined = f"{namespace}__{name}"
    if len(joined) <= _LONGEST_NAME and _NAME.fullmatch(joined) and joined not in taken:
        return joined
    digest = hashlib.sha256(f"{namespace}\0{name}".encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{_NOT_IN_NAMES.sub('_', joined)[: _LONGEST_NAME - 9]}_{digest}"


def _chosen(kind: str, name: str) -> Object:
    return {"type": kind, kind: {"name": name}}


def _demanded(kinds: list[str]) -> InvalidRequest:
    return InvalidRequest(f"tool_choice: expected a use of {' or '.join(_KINDS)} tools, {_ONLY_CHAT}, got {kinds[0]}")


def _function(tool: Object, path: str) -> Object:
    return given(tool, "description", "parameters", "strict")


def _custom(tool: Object, path: str) -> Object:
    custom = given(tool, "description")
    wanted = object_in(tool, "format", path)
    if wanted:
        custom["format"] = one_of(_FORMATS, wanted.get("type"), f"{path}.format.type")(wanted)
    return custom


_KINDS: Mapping[str, Callable[[Object, str], Object]] = {"function": _function, "custom": _custom}
_FORMATS: Mapping[str, Callable[[Object], Object]] = {
    "text": lambda wanted: {"type": "text"},
    "grammar": lambda wanted: {"type": "grammar", "grammar": given(wanted, "definition", "syntax")},
}
