"""A subscription for each reader, as the tutorials of sse-starlette have it."""

import os
from collections.abc import AsyncIterator

import redis.asyncio
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

# A reader holds a connection.
client = redis.asyncio.from_url(os.environ["REDIS_URL"], decode_responses=True, max_connections=20_000)


async def events(request: Request) -> EventSourceResponse:
    return EventSourceResponse(published_in(request.path_params["channel"]))


async def published_in(channel: str) -> AsyncIterator[dict[str, str]]:
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        async for message in pubsub.listen():
            yield {"data": message["data"]} if message["type"] == "message" else {"comment": "subscribed"}


app = Starlette(routes=[Route("/events/{channel}", events)])
