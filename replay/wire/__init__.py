"""Bytes of other systems into what is true here, and back; nothing here waits, and nothing does I/O.

A token meets them in this order. In, from the upstream:

    sse.py                 Decoder: pieces of a body into messages
    unfolding.py           a whole completion where a stream was asked for, as the chunks that say the same
    recorder.py            Recorder: messages into entries, and the verdict on the stream
      chunk.py, noise.py   one chunk out of a message's data, and what is none
      dialect.py           Dialect: what has to be known of how a family of upstreams says things; `dialects.py` has all
        chat_dialect.py    chat completions; `chat.py` and `tool_calls.py` normalize what servers make of them
        responses_dialect.py   OpenAI's Responses API
      openai.py            Template: chunks that differ in one string; forms.py, filling.py: in several values
      failures.py          how upstreams say that they have failed; refusals.py: of their HTTP errors
      response_outcome.py  how a Responses stream says how it has ended

Out, to readers:

    events.py              Recording: a log and what is made of it once; Format; SSE and NDJSON
    openai_formats.py      the log as OpenAI's clients see it
    responses.py           the log as events of the Responses API; responses_format.py makes a Format of it
      response_output.py   the items of a response
    activity.py            the activity log
    multiplexing.py        several generations in one stream
    framing.py             Framing: how blocks stand on a connection
    normalizing.py, folding.py  what chunks say as plain chat, and the transcript of a log
    completions.py         a whole completion of a log

And requests:

    responses_request.py   of the Responses API for upstreams that only know chat; responses_tools.py: their tools
    expect.py              reads members of a request, and says what was expected
    repeated.py            what a response repeats of its request
    kept_request.py        a request without keys, as it is kept
    json.py                JSON as fast and as careful as is needed

A further dialect is a file like `responses_dialect.py` and a row in `dialects.py`; a further framing is a value in
`framing.py`.
"""
