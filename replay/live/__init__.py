"""What moves events: from upstreams into logs, and from logs to all who follow.

A start meets them in this order:

    start_request.py       StartRequest: what somebody wants started
    starter.py             Starter: decides on the id and creates the log; first_tries.py finds what a retry has begun
    producers.py           Producers: what runs on this node

A token meets them in this order:

    producer.py            Producer: upstream -> entries
    writer.py              Writer: entries -> append -> acknowledged; repair.py puts back what Valkey has lost
    feed.py                Feed: acknowledged events, and who follows them here
    encoding.py            Encoding: the bytes that are the same for many; segments for those who come late
    subscriber.py          Subscriber: one reader, live or behind; multiplexing.py: one reader of several feeds
    stream_connection.py   StreamConnection: what all long-lived connections have in common

On any other node, it gets into the feed by

    follower.py            Follower: keeps a feed equal to the log

On every node, feeds are found in

    hub.py                 Hub: all feeds of this node, produced or followed, opened and given up; cache.py, memory.py:
                           ended ones

A generation ends by its producer, or from elsewhere:

    endings.py             Endings: end, cancel, delete; closing.py ends what another node produces
    keeper.py              Keeper: stands ready to repair such an end
    orphans.py             Orphans: ends what has lost its node
    abandonment.py         Abandonment: gives up what nobody follows

What becomes of all of them:

    activity.py            Activity: the log of it, followed; activity_writer.py writes, activity_reporter.py reports
    progress.py            Progress: how far the live ones are, once a second
    catalogue.py           Catalogue: finds generations

    periodic_work.py       PeriodicWork: leases, looks, and what else comes by the clock
    tasks.py               Tasks: owns what belongs to no request
    counters.py            Counters: plain integers, published as metrics; clock.py: the time of day

No queue anywhere: a subscriber that is behind has a seq. Nothing is shown before it is acknowledged.
"""
