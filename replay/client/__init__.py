"""The Python client of the service: `Client`, and `AsyncClient` for asyncio.

    with replay.Client() as client:
        generation = client.start("Why is the sky blue?")
        for event in client.follow(generation.id):
            if isinstance(event, replay.Token):
                print(event.content, end="", flush=True)

What decides is pure: `requests` builds what is asked, `calls` and `following` say what an answer means and when to ask
again, `patience` how long to wait. `client` and `async_client` only send, receive and sleep.
"""

from replay.client.async_client import AsyncClient
from replay.client.client import Client
from replay.client.events import Delta, End, Event, Live, Reset, Start, Token
from replay.client.generations import TERMINAL, Generation, Status, Transcript
from replay.client.problems import UnexpectedAnswer, UnknownProblem, Unreachable

__all__ = [
    "TERMINAL",
    "AsyncClient",
    "Client",
    "Delta",
    "End",
    "Event",
    "Generation",
    "Live",
    "Reset",
    "Start",
    "Status",
    "Token",
    "Transcript",
    "UnexpectedAnswer",
    "UnknownProblem",
    "Unreachable",
]
