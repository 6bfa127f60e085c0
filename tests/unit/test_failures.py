"""What is an error of the upstream's, whatever it is called, and what is none."""

from __future__ import annotations

import pytest

from replay.wire.failures import error_in, is_failure, upstream_error
from replay.wire.noise import is_end_mark, is_heartbeat, is_heartbeat_object, unwrapped


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "abort",
            "aborted",
            "error",
            "ERROR",
            "network_error",
            "networkError",
            "server_error",
            "internal_server_error",
        ),
        *("timeout", "TIMEOUT", "timed_out", "insufficient_system_resource", "engine_overloaded", "cancelled"),
        *("malformed_function_call", "function_call_filter: MALFORMED_FUNCTION_CALL", "malformed_tool_use"),
        *("UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE", "resource_exhausted"),
        *("upstream_error", "gateway_error", "rate_limit_exceeded", "ERROR_TOXIC", "failed", "unavailable"),
    ],
)
def test_reason_means_failure(reason):
    assert is_failure(reason)


@pytest.mark.parametrize(
    "reason",
    [
        *("stop", "length", "content_filter", "tool_calls", "function_call", "sensitive", "eos_token", "stop_sequence"),
        *("max_tokens", "end_turn", "refusal", "SAFETY", "content_filter: RECITATION", "model_context_window_exceeded"),
        *("time_limit", "model_length", "unload", "repetition", "OTHER", "x", "", "完成"),
    ],
)
def test_reason_is_an_end_of_its_own(reason):
    assert not is_failure(reason)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ({"error": "no"}, "no"),
        ({"error": {"message": "no"}, "choices": [{"index": 0}]}, "no"),
        ({"error": True, "message": "no"}, "no"),
        ({"object": "error", "message": "no"}, "no"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, "no"),
        ({"code": "x", "message": "no"}, "no"),
        ({"code": 10163, "msg": "no", "data": None}, "no"),
        ({"status": 503, "title": "no"}, "no"),
        ({"status": "failed", "message": "no"}, "no"),
        ({"success": False, "message": "no"}, "no"),
        ({"detail": "no"}, "no"),
        ({"detail": [{"msg": "no"}]}, '[{"msg":"no"}]'),
        ({"errors": [{"message": "no"}]}, "no"),
        ({"errors": ["no"]}, '["no"]'),
        ({"base_resp": {"status_code": 1, "status_msg": "no"}, "choices": None}, "no"),
    ],
)
def test_error_is_found_with_its_words(chunk, message):
    assert str(upstream_error(error_in(chunk))) == message


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [], "error": None},
        {"choices": [{"index": 0}], "error": {}},
        {"choices": [{"index": 0}], "code": 500, "message": "x"},
        {"choices": [], "usage": {"total_tokens": 1}, "detail": "x"},
        {"code": 0, "message": "success"},
        {"status": "queued", "message": "you are the third"},
        {"model": "m", "message": {"role": "assistant", "content": "x"}, "done": False},
        {"id": "u", "code": 500},
        {},
    ],
)
def test_what_tells_of_no_error(chunk):
    assert error_in(chunk) is None


def test_code_of_an_error_is_kept_under_its_own_name():
    assert upstream_error({"error_code": 7, "error_msg": "no"}).details == {"code": 7}
    assert upstream_error({"code": None, "status": 503, "message": "no"}).details == {"code": 503}


@pytest.mark.parametrize("error", [{}, "", None, []])
def test_error_without_a_word_says_so(error):
    assert str(upstream_error(error)) == "the upstream sent an error without a word"


@pytest.mark.parametrize("data", [b"[DONE]", b"[DONE] ", b" [done]", b"DONE", b'"[DONE]"', b"'[DONE]'", b"[ DONE ]"])
def test_end_mark(data):
    assert is_end_mark(data)


@pytest.mark.parametrize("data", [b"{}", b"[1]", b"done it", b"undone", b"", b'{"done":true}'])
def test_what_is_no_end_mark(data):
    assert not is_end_mark(data)


@pytest.mark.parametrize(
    "data",
    [b"", b" ", b"ping", b'"PING"', b"heartbeat", b"keep-alive", b"null", b"[]", b"...", b"ping 2025-01-01 10:00:00"],
)
def test_heartbeat(data):
    assert is_heartbeat(data, b"")


@pytest.mark.parametrize(
    "data", [b"42", b"-1.5", b"[1]", b"{", b"}", b'"a"', b"hello", b"shipping", b"pinging", b'{"a":1}']
)
def test_what_is_no_heartbeat(data):
    assert not is_heartbeat(data, b"")


@pytest.mark.parametrize("name", [b"ping", b"heartbeat", b"keepalive"])
def test_name_of_an_event_makes_a_heartbeat_of_what_is_no_chunk(name):
    assert is_heartbeat(b"hello", name)
    assert is_heartbeat_object({"at": 1}, name)
    assert not is_heartbeat(b'{"choices":[]}', name)
    assert not is_heartbeat_object({"choices": []}, name)


@pytest.mark.parametrize(
    ("data", "inner"),
    [
        (b"data: [DONE]", b"[DONE]"),
        (b'event: x\nid: 1\ndata: {"a":1}\n\n', b'{"a":1}'),
        (b": a comment", b""),
        (b'{"a":\n"data: x"}', b'{"a":\n"data: x"}'),
        (b"hello", b"hello"),
    ],
)
def test_block_that_was_wrapped_is_unwrapped(data, inner):
    assert unwrapped(data) == inner
