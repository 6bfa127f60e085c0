"""The commands of the terminal, beside `replay serve`."""

from replay.cli.arguments import add_commands
from replay.cli.completion import complete

__all__ = ["add_commands", "complete"]
