"""The commands of the terminal, beside `replay serve`.

    arguments.py      what is typed: commands and their options; completion.py: what a shell offers
    commands.py       what each command does; exits.py: the exit codes
    showing.py        a generation as it goes on; listing.py: several, as a list
      asides.py       what a model says beside its answer
      progress.py     how far it is; status_line.py: the line that says so
    terminal.py       where all of that is written; printable.py: what of a model's text may be

They ask the service through `replay.client`, as any other program does.
"""

from replay.cli.arguments import add_commands
from replay.cli.completion import complete

__all__ = ["add_commands", "complete"]
