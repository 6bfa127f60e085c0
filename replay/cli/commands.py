"""What each command does, given a client and a terminal."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from itertools import islice

from replay.cli.exits import Exit
from replay.cli.listing import plain_line, print_table
from replay.cli.showing import show, tell_end
from replay.cli.terminal import Terminal
from replay.client import Client, Generation
from replay.errors import GenerationNotFound, InvalidSetting

USUAL_LIMIT = 50  # generations in a list


def generate(client: Client, arguments: argparse.Namespace, terminal: Terminal) -> Exit:
    """Start a generation and show it."""
    prompt = _prompt(arguments.prompt)
    try:
        generation = _start(client, arguments, prompt)
    except KeyboardInterrupt:
        terminal.complain("the service has not answered yet; `replay ls` tells whether the generation was started")
        raise
    terminal.say(f"generation {generation.id}")
    return show(client, terminal, generation, after=None, come_back=_come_back(generation.id, arguments))


def _prompt(text: str | None) -> str:
    """The prompt, from stdin where it is `-` or is left out; raises InvalidSetting where it is in neither place."""
    if text is None and sys.stdin.isatty():
        raise InvalidSetting("no prompt: expected one as an argument, or on stdin")
    if text in (None, "-"):
        return sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")
    return text


def _start(client: Client, arguments: argparse.Namespace, prompt: str) -> Generation:
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    parameters = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    return client.start(
        messages=[*system, {"role": "user", "content": prompt}],
        model=arguments.model,
        id=arguments.id,
        ttl=arguments.ttl,
        metadata=dict(arguments.metadata),
        idempotency_key=arguments.idempotency_key,
        **{name: value for name, value in parameters.items() if value is not None},
    )


def watch(client: Client, arguments: argparse.Namespace, terminal: Terminal) -> Exit:
    """Show a generation that somebody has started."""
    generation = client.generation(arguments.id)
    after = None if arguments.from_start else generation.last_event_id
    return show(client, terminal, generation, after=after, come_back=_come_back(generation.id, arguments))


def _come_back(generation_id: str, arguments: argparse.Namespace) -> str:
    return f"replay watch {generation_id}" + (f" --url {shlex.quote(arguments.url)}" if arguments.url else "")


def ls(client: Client, arguments: argparse.Namespace, terminal: Terminal) -> Exit:
    """List generations, and say whether there are more, unless it is a program that asked for so many."""
    limit = None if arguments.all else USUAL_LIMIT if arguments.limit is None else arguments.limit
    listing = client.list(
        status=arguments.status,
        model=arguments.model,
        metadata=dict(arguments.metadata),
        q=arguments.q,
        since=arguments.since,
        until=arguments.until,
        limit=None if limit is None else limit + 1,  # the one too many tells that there is more
    )
    generations = islice(listing, limit)
    if arguments.json:
        for generation in generations:
            terminal.write(json.dumps(generation.raw, ensure_ascii=False) + "\n")
    elif terminal.decorated:
        print_table(generations)
    else:
        for generation in generations:
            terminal.write(plain_line(generation) + "\n")
    if (terminal.decorated or arguments.limit is None) and next(listing, None) is not None:
        terminal.complain(f"there are more than {limit:,}: --limit N shows N, --all shows all")
    return Exit.DONE


def transcript(client: Client, arguments: argparse.Namespace, terminal: Terminal) -> Exit:
    """Print what a generation has said."""
    # Looked up first: it may say less than the text then shows, and never that a part is the whole.
    generation = client.wait(arguments.id) if arguments.wait else client.generation(arguments.id)
    match arguments.format:
        case "json":
            terminal.write(json.dumps(client.transcript(arguments.id).raw, ensure_ascii=False, indent=2) + "\n")
        case "markdown":
            terminal.write(client.markdown(arguments.id))
        case _:
            terminal.write(client.text(arguments.id))
    return tell_end(terminal, generation)


def cancel(client: Client, arguments: argparse.Namespace, terminal: Terminal) -> Exit:
    """Stop a generation, and print its status."""
    terminal.write(client.cancel(arguments.id).status + "\n")
    return Exit.DONE


def delete(client: Client, arguments: argparse.Namespace, terminal: Terminal) -> Exit:
    """Remove generations, and print the id of each; one that does not exist spares none of the others."""
    exit = Exit.DONE
    for generation_id in arguments.id:
        try:
            client.delete(generation_id)
        except GenerationNotFound as error:
            terminal.complain(str(error))
            exit = Exit.NOT_FOUND
        else:
            terminal.write(generation_id + "\n")
    return exit
