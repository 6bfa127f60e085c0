"""What a response of OpenAI's Responses API repeats of the request it answers."""

from __future__ import annotations

from replay.wire.response_output import Object

# With what it says where the request left it open.
REPEATED: Object = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def repeated(request: Object) -> Object:
    """What a response repeats of a request."""
    given = {key: request[key] for key in REPEATED if request.get(key) is not None}
    for key, default in REPEATED.items():
        if isinstance(default, dict) and isinstance(given.get(key), dict):
            given[key] = default | given[key]  # some of what such an object says may be left open too
    return REPEATED | given
