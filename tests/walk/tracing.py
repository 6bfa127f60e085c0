"""Notes what of the package is called, turn by turn of the event loop, and tells what of that leads somewhere.

A turn is what a task, or a callback of the loop, does until it waits. Of the functions that are called in it

    are told         those that lead to bytes that leave, to a wait for Valkey, to a task that goes on, or to another
                     that is told; those in another folder than their caller's; and those in another file of it that
                     are called for what they do, and never return anything, or that hand on what comes in
    are not told     what was told before; properties, names in double underscores, comprehensions, lambdas; what is
                     counted for metrics; what `wire` and `model` call, where nothing waits
    stand on a line  those of one file that lead to each other
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import replay

PACKAGE = Path(replay.__file__).parent
_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_PURE = ("wire", "model")
_METRICS = "live/counters.py"
_WAITS, _SENT, _WAKES = "waits for Valkey", "bytes leave for ", "wakes "


@dataclass(eq=False, slots=True)
class Call:
    """A function that was called, or a coroutine that went on; and what happened in it: calls, or words for it."""

    code: CodeType
    inner: list[Call | str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Its file, as seen from the package."""
        return Path(self.code.co_filename).relative_to(PACKAGE).as_posix()

    @property
    def folder(self) -> str:
        """The folder of that."""
        return self.file.rpartition("/")[0]

    @property
    def named(self) -> Any:
        """What has its name: the function, or a property of it; None for what is inside another function."""
        found: Any = importlib.import_module("replay." + self.file.removesuffix(".py").replace("/", "."))
        for name in self.code.co_qualname.split("."):
            found = inspect.getattr_static(found, name, None)
        return found


@dataclass(eq=False, slots=True)
class Line:
    """What is told: whose turn it is, or something that happened; or functions of one file."""

    depth: int
    text: str = ""
    calls: list[Call] = field(default_factory=list)


class Tracer:
    """A context in which the calls of this thread are noted.

    ``ports`` names who is at the other end of a socket, by that end's port; or by this one's, below 0.
    """

    def __init__(self, ports: Mapping[int, str]) -> None:
        self._ports = ports
        self._turns: list[tuple[str, list[Call | str]]] = []
        self._running: list[tuple[FrameType, Call]] = []  # the innermost last
        self._awaited: object = None
        self._bytes_from = ""  # what the next turn is about

    def __enter__(self) -> Tracer:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            whose = getattr(argument, "__self__", None)
            if isinstance(whose, socket.socket):
                self._note_bytes(argument.__name__, whose)
            elif isinstance(whose, asyncio.Future) and argument.__name__ == "set_result":
                self._note_waking(whose)
        elif not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return
        elif event == "call":
            call = Call(frame.f_code)
            self._now().append(call)
            self._running.append((frame, call))
        elif event == "return" and self._running and self._running[-1][0] is frame:
            _, call = self._running.pop()
            if isinstance(argument, asyncio.Future) and call.code.co_flags & _COROUTINE:
                if argument is not self._awaited and call.folder == "store":  # who awaits it, awaits the same
                    call.inner.append(_WAITS)
                self._awaited = argument

    def _note_bytes(self, function: str, own_end: socket.socket) -> None:
        if function not in ("send", "sendmsg", "recv", "recv_into"):
            return
        try:
            own, other = own_end.getsockname()[1], own_end.getpeername()[1]
        except OSError:
            return
        whose = self._ports.get(-own) or self._ports.get(other)
        if whose is not None and function.startswith("recv"):
            self._bytes_from = whose
        elif whose is not None and self._running:
            self._now().append(_SENT + whose)

    def _note_waking(self, future: asyncio.Future[Any]) -> None:
        """Note which task goes on by what a function of the package has done."""
        for callback, _ in future._callbacks or ():
            task = getattr(callback, "__self__", None)
            if isinstance(task, asyncio.Task) and self._running:
                self._now().append(_WAKES + _named(task))

    def _now(self) -> list[Call | str]:
        """Where to note what happens now."""
        if self._running:
            return self._running[-1][1].inner
        task, self._bytes_from, bytes_from = asyncio.current_task(), "", self._bytes_from
        whose = "the event loop" if task is None else _named(task)
        self._turns.append((whose + (f", with bytes from {bytes_from}" if bytes_from else ""), []))
        return self._turns[-1][1]

    @property
    def silent(self) -> bool:
        """Whether nothing of the package was called."""
        return not self._turns

    def lines(self) -> list[Line]:
        """What is worth telling, in its order."""
        lines: list[Line] = []
        met: set[CodeType | str] = set()
        for whose, inner in self._turns:
            told = list(_told(inner, None, met))
            if told:
                lines.append(Line(0, whose))
                _lay_out(told, lines, 1)
        return lines


def _named(task: asyncio.Task[Any]) -> str:
    name = "task " + re.sub(r"gen_\S+", "<id>", task.get_name())
    return re.sub(r"task Task-\d+", "the request's task", name)  # aiohttp gives it no name


def _told(inner: list[Call | str], caller: Call | None, met: set[CodeType | str]) -> Iterator[Call | str]:
    """What is told of these; what is told of a function that is not comes in its place."""
    for what in inner:
        if isinstance(what, str):
            once = f"{what} {caller and caller.code.co_qualname}" if what.startswith(_WAKES) else what
            if what == _WAITS or once not in met or "reader" in what:
                yield what
            met.add(once)
        elif caller is None or caller.folder not in _PURE:
            new = what.code not in met and not _is_noise(what)
            met |= {what.code} if new else set()
            further = list(_told(what.inner, what, met))
            if not new:
                yield from further
            elif further or _goes_elsewhere(what, caller):
                yield Call(what.code, further)
            else:
                met.discard(what.code)


def _goes_elsewhere(call: Call, caller: Call | None) -> bool:
    if caller is None or call.file == caller.file:
        return False
    hands_on = bool(call.code.co_flags & inspect.CO_ASYNC_GENERATOR)
    return call.folder != caller.folder or hands_on or inspect.get_annotations(call.named).get("return") == "None"


def _is_noise(call: Call) -> bool:
    return call.code.co_name.startswith(("__", "<")) or call.file == _METRICS or isinstance(call.named, property)


def _lay_out(told: list[Call | str], lines: list[Line], depth: int, line: Line | None = None) -> None:
    """Lay out what ``line`` leads to, where there is one."""
    for what in told:
        if isinstance(what, str):
            lines.append(Line(depth, what))
            continue
        own = next(
            (each for each in (line, lines[-1]) if each and each.calls and each.calls[0].file == what.file), None
        )
        if own is None:
            own = Line(depth)
            lines.append(own)
        own.calls.append(what)
        _lay_out(what.inner, lines, own.depth + 1, own)
