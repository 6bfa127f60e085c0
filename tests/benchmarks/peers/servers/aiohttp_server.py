"""A subscription for each reader, over aiohttp."""

import os
import sys

import redis.asyncio
import uvloop
from aiohttp import web

# A reader holds a connection.
client = redis.asyncio.from_url(os.environ["REDIS_URL"], max_connections=20_000)


async def events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(request.match_info["channel"])
        async for message in pubsub.listen():
            said = b"data: %b\n\n" % message["data"] if message["type"] == "message" else b": subscribed\n\n"
            await response.write(said)
    return response


app = web.Application()
app.add_routes([web.get("/events/{channel}", events)])
web.run_app(
    app,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    backlog=8192,
    access_log=None,
    print=None,
    handler_cancellation=True,  # a reader who leaves gives his subscription back
    loop=uvloop.new_event_loop(),
)
