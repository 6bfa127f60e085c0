"""Keys and passwords are taken out of texts, and nothing else is."""

from __future__ import annotations

import base64

import pytest

from replay import config
from replay.config import Settings
from replay.redaction import NO_SECRETS, Redaction, secrets_in_headers
from replay.wire.kept_request import without_keys


def test_secrets_are_taken_out_wherever_they_stand():
    redaction = Redaction(["sk-12345678", "sk-12345678-long"])
    assert redaction.text("no sk-12345678-long, sk-12345678.") == "no [redacted], [redacted]."
    value = {"a sk-12345678": ["sk-12345678", 1, None, {"b": "x sk-12345678"}]}
    assert redaction.value(value) == {"a [redacted]": ["[redacted]", 1, None, {"b": "x [redacted]"}]}


def test_a_quotation_has_no_piece_of_a_secret_wherever_it_is_cut():
    secret = "sk-Proj/5f0c+2a71b9"
    redaction = Redaction([secret])
    pieces = {secret[start : start + 8].lower() for start in range(len(secret) - 7)}
    for start in range(len(secret)):
        for stop in range(start + 1, len(secret) + 1):
            for cut in (secret[start:stop], secret[start:stop].upper()):
                quotation = redaction.quotation(f"bad header: b'{cut}'")
                assert not any(piece in quotation.lower() for piece in pieces)
                assert quotation in (f"bad header: b'{cut}'", "bad header: b'[redacted]'")
    assert (
        redaction.quotation(f"x {secret}, {secret[3:-1]} and {secret[:8]}") == "x [redacted], [redacted] and [redacted]"
    )
    assert NO_SECRETS.quotation("anything at all") == "anything at all"


def test_what_protects_nothing_is_a_word_like_any_other():
    redaction = Redaction(["none", "", "a.*"])
    assert redaction.text("none of a.*") == "none of a.*"
    assert redaction.value(["none"]) == ["none"]
    assert NO_SECRETS.text("anything") == "anything"


def test_further_secrets_leave_those_there_are():
    redaction = Redaction(["first-secret"]).beside(["second-secret"])
    assert redaction.text("first-secret second-secret") == "[redacted] [redacted]"


def test_secrets_of_headers_are_known_with_and_without_their_scheme():
    assert secrets_in_headers(["Bearer abc", "def"]) == {"Bearer abc", "abc", "def"}
    assert secrets_in_headers(["Basic bWU6cGFzcw=="]) >= {"bWU6cGFzcw==", "me:pass", "pass"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("at https://me:pass@host/v1 now", "at https://[redacted]@host/v1 now"),
        ("{'Authorization': 'Bearer sk-unknown-1'}", "{'Authorization': '[redacted]'}"),
        ("('Proxy-Authorization', 'Basic dXNlcjpwYXNz')", "('Proxy-Authorization', '[redacted]')"),
        ("'x-api-key': 'k', \"Cookie\": \"a=b\"", "'x-api-key': '[redacted]', \"Cookie\": \"[redacted]\""),
        ("sent Bearer sk-unknown-1, and", "sent Bearer [redacted], and"),
        ("Basic authorization, Bearer authentication", "Basic authorization, Bearer authentication"),
        ("generation='gen_a' url='http://host/v1'", "generation='gen_a' url='http://host/v1'"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_a_line_of_the_log(line, expected):
    assert Redaction().log_line(line) == expected


def test_every_secret_among_the_settings_is_known():
    settings = Settings(
        upstream_api_key="upstream-key",
        upstream_url="https://user-name:pass%2Fword@host/v1?key=query%2Fkey%2B1==&api-version=1&bare-value",
        upstreams="a* http://x ROW_KEY; b* http://:row-password@y",
        valkey_url="valkeys://:valkey-password@host:6379/0",
    )
    environ = {"OPENAI_API_KEY": "openai-key", "ROW_KEY": "row-key", "HTTPS_PROXY": "http://p:proxy-password@host"}
    found = config.secrets(settings, environ)
    assert found >= {"upstream-key", "openai-key", "row-key", "row-password", "query/key+1", "valkey-password"}
    assert found >= {"user-name", "pass%2Fword", "pass/word", "proxy-password", "user-name:pass/word", "bare-value"}
    assert not {"host", "a*", "http://x", "ROW_KEY"} & found
    assert config.secrets(Settings(), {}) == set()


@pytest.mark.parametrize(
    "spelt",
    [
        'sk-a/b+"c\\12',
        'SK-A/B+"C\\12',
        "sk-a/b%2B%22c%5C12",
        "sk-a%2Fb%2B%22c%5C12",
        'sk-a/b+\\"c\\\\12',
        base64.b64encode(b'sk-a/b+"c\\12').decode(),
    ],
)
def test_a_secret_is_known_however_it_is_spelt(spelt):
    redaction = Redaction(['sk-a/b+"c\\12'])
    assert redaction.text(f"<{spelt}>").startswith("<[redacted]")
    assert redaction.hits(b"<%b>" % spelt.encode())


@pytest.mark.parametrize("raw", [rb"sk\u002dab/cd+ef12", rb"sk-ab\/cd+ef12", rb"\u0073k-AB/cd+ef12"])
def test_a_secret_in_json_is_known_however_it_is_escaped(raw):
    assert Redaction(["sk-ab/cd+ef12"]).hits(b'{"a": 1, "a": "%b"}' % raw)
    assert not Redaction(["another-one"]).hits(raw)


def test_a_request_is_kept_without_the_keys_that_it_brings():
    tool = {
        "type": "mcp",
        "server_url": "https://me:password-1@host/mcp?token=query-token#x",
        "authorization": "Bearer bearer-token",
        "headers": {"X": "header-value", "Y": 1, "Z": ["listed-value"]},
    }
    schema = {"type": "function", "function": {"parameters": {"properties": {"api_key": "a word", "headers": {}}}}}
    said = [{"role": "user", "content": {"api_key": "said-in-a-message"}}]
    request = {
        "model": "m",
        "messages": said,
        "input": said,
        "metadata": {"password": "mine-for-all-to-see"},
        "api_key": "key-of-another",
        "openai_api_key": "key-of-openai",
        "apiToken": "token-in-camels",
        "auth": {"token": "deep-token"},
        "extra_headers": {"A": "extra-value"},
        "tools": [tool, schema, "odd"],
        "mcp_servers": [{"authorization_token": "server-token"}],
        "password": 5,
        "token": "none",
        "max_tokens": 7,
        "tool_choice": "auto",
        "image": "https://host/a.png",
    }
    kept, _ = without_keys(request)
    assert kept == request | {
        "api_key": "[redacted]",
        "openai_api_key": "[redacted]",
        "apiToken": "[redacted]",
        "auth": {"token": "[redacted]"},
        "extra_headers": {"A": "[redacted]"},
        "tools": [
            tool
            | {
                "server_url": "https://host/mcp",
                "authorization": "[redacted]",
                "headers": {"X": "[redacted]", "Y": 1, "Z": ["[redacted]"]},
            },
            schema,
            "odd",
        ],
        "mcp_servers": [{"authorization_token": "[redacted]"}],
    }
    _, found = without_keys(request)
    assert found >= {"bearer-token", "header-value", "listed-value", "password-1", "query-token", "deep-token"}
    assert found >= {"key-of-another", "key-of-openai", "token-in-camels", "extra-value", "server-token"}
    assert not {"a word", "said-in-a-message", "none", "auto"} & found
    assert tool["authorization"] == "Bearer bearer-token"  # what the upstream is sent is untouched
