"""The command line: `replay serve` runs a node, everything else is a client of one."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from replay import __version__, config
from replay.cli import add_commands, complete
from replay.errors import InvalidSetting, ReplayError

_INSTALL = "pip install 'valkey-replay[server]'"


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line; the usage of `serve` alone fills a screen, and hides what was told."""

    def parse_args(self, *given: Any, **options: Any) -> Any:
        arguments, unknown = self.parse_known_args(*given, **options)
        if unknown:
            # Without their values: keys have no flag, and are given with one.
            flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            self.error(f"unrecognized arguments: {' '.join(flags) or len(unknown)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (more: {self.prog} --help)\n")


def main() -> None:
    """The command line."""
    parser = _Parser(prog="replay", description="A durable replay service for LLM generations.")
    parser.add_argument("--version", action="version", version=f"replay {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run a node", description="Run a node. Every flag is also REPLAY_….")
    config.add_flags(serve)
    serve.set_defaults(run=_serve)
    add_commands(commands)
    complete(parser)
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    try:
        from replay.serve import serve  # without which the other commands start several times as fast
    except ModuleNotFoundError as error:
        print(f"replay: {error.name} is not installed, which a node needs: {_INSTALL}", file=sys.stderr)
        return 1
    except ReplayError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 1
    try:
        return serve(vars(arguments))
    except ReplayError as error:
        print(f"replay: {error.in_full}", file=sys.stderr)
        return 2 if isinstance(error, InvalidSetting) else 1


if __name__ == "__main__":
    main()
