"""Other servers that fan events out over Server-Sent Events, each as its own documentation or tutorial has it.

for kind in PEERS:
    try:
        await kind.install()  # at once when all is there
        async with kind() as peer:
            await peer.open("s")
            ...  # subscribers send peer.request("s")
            await peer.publish("s", b'{"content":"Hel"}')
    except Missing as missing:
        print(kind.name, missing)
"""

from .nchan import Nchan, NchanBackup, NchanRedis
from .node_servers import DurableStreams, ResumableStream
from .peer import Missing, Peer
from .pubsub import AioHttp, SseStarlette

__all__ = [
    "PEERS",
    "AioHttp",
    "DurableStreams",
    "Missing",
    "Nchan",
    "NchanBackup",
    "NchanRedis",
    "Peer",
    "ResumableStream",
    "SseStarlette",
]

# As the table names them.
PEERS: tuple[type[Peer], ...] = (Nchan, NchanRedis, SseStarlette, AioHttp, ResumableStream, DurableStreams)
