"""Completion in shells: `replay completion bash` prints what a shell is told once, `complete` answers what it asks."""

from __future__ import annotations

import argparse
import os
from typing import Any

from replay.client import Client
from replay.errors import ReplayError

SHELLS = ("bash", "zsh", "fish")

_DESCRIPTION = """\
Print what a shell needs to complete commands, flags and the ids of generations.

  bash   echo 'eval "$(replay completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(replay completion zsh)"' >> ~/.zshrc    (below the line with `compinit`)
  fish   replay completion fish > ~/.config/fish/completions/replay.fish
"""
_TIMEOUT_S = 1.0  # somebody waits in the middle of a line
_MOST_IDS = 100


def add_completion(parsers: Any) -> None:
    """Add the command to a command line's subparsers."""
    parser = parsers.add_parser(
        "completion",
        help="print what a shell needs to complete this command line",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=_print_completion)


def _print_completion(arguments: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["replay"], shell=arguments.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end, where it is one that asks how a line may go on."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)


def add_id(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Give a command its argument ID, which shells can complete."""
    argument: Any = parser.add_argument("id", metavar="ID", **options)
    argument.completer = _newest


def _newest(parsed_args: argparse.Namespace, **_: Any) -> dict[str, str]:
    """The newest generations by their ids, each with a description; none where the service does not answer at once."""
    try:
        with Client(parsed_args.url, timeout=_TIMEOUT_S, retry_for=0.0) as client:
            return {each.id: f"{each.status}, {each.model}" for each in client.list(limit=_MOST_IDS)}
    except ReplayError:
        return {}
