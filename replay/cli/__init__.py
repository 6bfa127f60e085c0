"""The commands of the terminal, beside `replay serve`."""

from replay.cli.arguments import add_commands

__all__ = ["add_commands"]
