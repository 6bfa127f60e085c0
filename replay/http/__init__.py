"""The service on the wire: requests in, and answers or streams out.

A request meets them in this order:

    server.py              limits of connections and heads; aiohttp_server.py: all that leans on aiohttp's inside
      heads.py             whether bytes are a part of a head
    origins.py             which hosts, and which pages of other origins, are let in
    problems.py            errors as RFC 9457 has them, and as OpenAI's clients expect them
    negotiation.py         media types and parameters; bodies.py: bodies
    generation_list.py     what is asked of the list of generations; openai_lists.py: pages of lists as OpenAI has them
    (a face, below)
    start_requests.py      what a request asks to start
    resuming.py            Resuming: who comes back with a cursor; decides on 204 and come back, and on reset but for
                           multiplexed streams
    streaming.py           makes a subscriber of a request; takeover.py takes its connection away from the server
    headers.py             what every answer has

The faces, each a group of routes:

    generations.py         /generations, /generations/{id}
    events.py              /generations/{id}/events
    transcripts.py         /generations/{id}/transcript
    multiplexing.py        /events: several generations on one connection
    activity.py            /feed
    completions.py         /v1/chat/completions, /v1/completions, /v1/models
    stored.py              /v1/chat/completions/{id} and its list
    responses.py           /v1/responses; decides itself where `starting_after`, which is no event's id, goes on
    token_stream.py        /v1/completions/stream
    ops.py                 /healthz, /readyz, /metrics; siblings.py merges those of several workers
    pages.py               the dashboard and replay.js, which lie in static/ as they are served

The pages, in static/:

    index.html             the dashboard's one document, with a template for each view; base.css, views.css
      main.js              which view an address shows
      list.js              the list of generations; row.js: one of them
      generation.js        the page of one: answer-view.js, facts.js, plot.js and scroll.js show it; recording.js and
                           player.js play it back; share.js takes it elsewhere
      start.js             the form that starts one
      activity.js          the activity, for all views; node.js: the other calls; page.js, format.js: what views need
    replay.js              the module for anybody's pages, the dashboard's too
      connection.js        an EventSource that comes back; answer.js: what has been said; pace.js: how often it is shown

`openai_service.py` is what all faces under /v1 are answered from. A new face that resumes is one file here (its routes,
how its feed is opened, and where in it a reader goes on), its place in `App._routes`, and its paths in `openapi.json`.
"""
