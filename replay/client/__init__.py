"""The Python client of the service: `Client`, and `AsyncClient` for asyncio.

    with replay.Client() as client:
        generation = client.start("Why is the sky blue?")
        for event in client.follow(generation.id):
            if isinstance(event, replay.Token):
                print(event.content, end="", flush=True)

What decides is pure, and either client only sends, receives and sleeps:

    client.py, async_client.py    Client and AsyncClient
    calls.py                      what is answered at once: what to send next, and when
    following.py                  a generation's events over any number of connections, each once
    requests.py                   what is asked
    problems.py                   what an answer means that is no success
    backoff.py                    how long to wait
    generations.py, events.py     what is given back
    exchange.py                   request, answer, no answer, as values; connection.py: as httpx2 has them
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
