"""What a response of the Responses API repeats of its request."""

from __future__ import annotations

from typing import Any

# With what is said where the request left it open.
REPEATED: dict[str, Any] = {
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


def repeated(request: dict[str, Any]) -> dict[str, Any]:
    """The members that a response to a request begins with."""
    members = {key: request[key] for key in REPEATED if request.get(key) is not None}
    for key, default in REPEATED.items():
        if isinstance(default, dict) and isinstance(members.get(key), dict):
            members[key] = default | members[key]  # some of what such an object says may be left open too
    return REPEATED | members
