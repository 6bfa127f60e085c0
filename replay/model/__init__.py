"""What is true of generations and their logs; nothing here waits, and nothing does I/O.

    event.py        Event, EventId, Kind; Entry, how an event is stored
    log.py          Log: events without a hole, so that a seq is an index
    trimmed_log.py  TrimmedLog: of which only the last part is here (the activity log)
    generation.py   Start and End, what the first and the last event hold; Status, Generation
    transcript.py   Transcript: all that chunks have said, folded
    growth.py       how each kind of string, list and object in them grows
    selection.py    Selection: which generations a list is of

Glossary, one word for a thing:

    generation    one answer of a model, from its `start` to its `end`
    log           its events, in Valkey; what is not there has not happened
    event         one of them; `start`, `token`, `delta` or `end`
    entry         an event as it is stored: a byte for how, and the payload
    seq           which event of its log it is: 0 is `start`, then 1, 2, 3 …
    event id      `<ms>-<seq>`: time and seq; Valkey's id for the entry, and the SSE id
    cursor        what a reader comes back with: an event id, `-1` for the start, or a position for each of several
    chunk         what an upstream has sent in one message; recorded in the dialect in which it came
    dialect       how a family of upstreams says things: chat, Responses
    whole chunk   one that is stored as it came; of those after it, where that will do, only what is new
    template      a chunk but for the one string that changes from chunk to chunk; a form, but for several values
    feed          a generation's acknowledged events on one node, and who follows them there
    subscriber    who follows a feed: a connection, a track of a multiplexed stream, or a request that waits
                  for the whole answer
    track         one generation of a multiplexed stream: one connection, several feeds
    live          of a subscriber: it has everything, and gets what comes with all others; of a generation: not ended
    behind        of a subscriber: it is not live, and pulls what it lacks as fast as it can or wants to
    follower      what keeps a feed equal to a log that another node writes
    producer      what runs one generation on its node; its writer is the only one that appends
    format        how a log stands on the wire: SSE, lines, OpenAI's chunks, …
    framing       how the blocks of a format stand on a connection: HTTP's chunks, or until it closes
    encoding      a format in a framing: subscribers of one encoding get the same bytes
    recording     a log with what was made of it once for all its readers
    piece         what is handed on at once: of a log whole events, of a string or a body whatever has come
    segment       a piece of a log that was framed once for all who come late
    notice        what a stream tells beside its log: `live`, `reset`, `snapshot`, …; in a `start`, a word to readers
    face          a group of routes; most show the log in one API's words
    activity      what becomes of all generations, as one log that every node writes (its URL, key and `feed_cursor`
                  say *feed*)
    lease         what says that a node is alive; a live generation whose node has none is an orphan
    healing       after Valkey was away: logs may be shorter than they were, until their producers have repaired them
    claim         which generation a caller's key leads to
    job           a caller's key for many requests (`Replay-Job`), each of which leads to a generation of its own
    first try     a start without a key, which a client that has given up waiting calls for again: it is led there
    run           one start of a generation id; one that is over is buried: noted, so that its log is not put back
"""
