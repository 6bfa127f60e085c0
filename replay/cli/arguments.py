"""The command line of each command, and what all have in common: a client, a terminal, an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, get_args

from replay.cli import commands
from replay.cli.completion import add_completion, add_id
from replay.cli.exits import EPILOG, Exit, exit_of_error
from replay.cli.terminal import Terminal
from replay.client import Client, Status
from replay.errors import ReplayError

_RETRY_FOR_S = 2.0  # somebody is waiting for an answer, be it that there is none

Command = Callable[[Client, argparse.Namespace, Terminal], Exit]


def add_commands(parsers: Any) -> None:
    """Add the commands to a command line's subparsers; `run` of what is parsed does it and gives the exit code."""
    _add_generate(parsers)
    _add_watch(parsers)
    _add_ls(parsers)
    _add_transcript(parsers)
    _add_cancel(parsers)
    _add_delete(parsers)
    add_completion(parsers)


def _add_generate(parsers: Any) -> None:
    parser = _add(parsers, "generate", commands.generate, "start a generation and show it")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to ask; `-`, or none: read from stdin")
    parser.add_argument("--model", help="model (default: the upstream's first)")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--id", help="id of the generation, 1 to 128 of A-Z a-z 0-9 _ -")
    parser.add_argument("--ttl", type=float, metavar="SECONDS", help="how long to keep it after its end")
    parser.add_argument(
        "--metadata", type=_pair, action="append", default=[], metavar="NAME=VALUE", help="may be given several times"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature")
    parser.add_argument(
        "--idempotency-key",
        metavar="KEY",
        help="the same key shows the generation it started before, unless that failed",
    )
    _add_quiet(parser)


def _add_watch(parsers: Any) -> None:
    parser = _add(parsers, "watch", commands.watch, "show a generation that goes on, or that has ended")
    add_id(parser)
    parser.add_argument(
        "--from-start",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show what has been said so far, or only what comes from now on",
    )
    _add_quiet(parser)


def _add_ls(parsers: Any) -> None:
    parser = _add(parsers, "ls", commands.ls, "list generations, newest first")
    status: Any = parser.add_argument(
        "--status", type=_statuses, metavar="STATUS", help=f"only these, separated by commas: {', '.join(_STATUSES)}"
    )
    status.completer = lambda **_: _STATUSES
    parser.add_argument("--model", help="only of this model")
    parser.add_argument(
        "--metadata",
        type=_pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only with this; may be given several times",
    )
    parser.add_argument("--q", metavar="TEXT", help="only with this in the id, the model or the metadata, in any case")
    parser.add_argument(
        "--since", type=_time, metavar="TIME", help="only what was created then or later: ISO 8601, local time"
    )
    parser.add_argument("--until", type=_time, metavar="TIME", help="only what was created then or earlier")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--limit", type=_count, metavar="N", help=f"at most so many ({commands.USUAL_LIMIT})")
    length.add_argument("--all", action="store_true", help="however many there are")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")


def _add_transcript(parsers: Any) -> None:
    parser = _add(parsers, "transcript", commands.transcript, "print what a generation has said")
    add_id(parser)
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="(%(default)s)")
    parser.add_argument("--wait", action="store_true", help="wait until it has ended")


def _add_cancel(parsers: Any) -> None:
    parser = _add(parsers, "cancel", commands.cancel, "stop a generation; what it has said stays; prints its status")
    add_id(parser)


def _add_delete(parsers: Any) -> None:
    parser = _add(parsers, "delete", commands.delete, "remove generations, with all they have said; prints their ids")
    add_id(parser, nargs="+")


def _add(parsers: Any, name: str, command: Command, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parsers.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="where the service is (default: REPLAY_URL, else http://127.0.0.1:8080)")
    parser.set_defaults(run=partial(_run, command))
    return parser


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no id and no status line on stderr")


_STATUSES: tuple[str, ...] = get_args(Status)


def _statuses(text: str) -> list[str]:
    statuses = text.split(",")
    unknown = [status for status in statuses if status not in _STATUSES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected {', '.join(_STATUSES)}")
    return statuses


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ISO 8601, as 2026-01-31T18:00") from None


def _run(command: Command, arguments: argparse.Namespace) -> Exit:
    terminal = Terminal(quiet=getattr(arguments, "quiet", False))
    try:
        with Client(arguments.url, retry_for=_RETRY_FOR_S) as client:
            return command(client, arguments, terminal)
    except ReplayError as error:
        terminal.complain(str(error))
        return exit_of_error(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return Exit.BROKEN_PIPE
    except OSError as error:
        _abandon_stdout()
        terminal.complain(f"cannot write: {error.strerror}")
        return Exit.FAILED


def _abandon_stdout() -> None:
    """What is left in the buffer would be written once more, and complained about, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
