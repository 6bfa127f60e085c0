"""Which upstream a completion is asked of, by its model, and whose key that upstream sees."""

from __future__ import annotations

import contextlib

import pytest
from support.node import Node
from support.upstream import ScriptedUpstream, say
from support.v1 import CHAT, ERROR, ask, assert_refused

# Whose key the upstream sees.

CALLER = {"Authorization": "Bearer sk-of-the-caller", "OpenAI-Organization": "org-of-the-caller"}
SERVICE_KEY = "sk-of-the-service"


@contextlib.contextmanager
def nothing_of(secrets, node, valkey):
    """Hold what a node writes, to stderr and to Valkey, against the secrets that went through it."""
    yield
    written = b"".join(path.read_bytes() for path in (valkey.directory / "appendonlydir").iterdir())
    assert b"a prompt that is kept" in written  # this is where it would stand
    for secret in secrets:
        assert secret.encode() not in written
        assert secret not in node.stderr


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "REPLAY_UPSTREAM_API_KEY"])
async def test_the_upstream_sees_the_services_key_and_never_the_callers(make_node, valkey, upstream, variable):
    node = await make_node(env={variable: SERVICE_KEY}, log_level="DEBUG")
    upstream.script = say("a")
    body = {"model": "test-model", "messages": [{"role": "user", "content": "a prompt that is kept"}]}
    with nothing_of([SERVICE_KEY, "of-the-caller"], node, valkey):
        for stream in (True, False):
            assert (await ask(node.api, body, CALLER, stream=stream)).status == 200
        assert (await node.api.get("/v1/models", CALLER)).status == 200
        upstream.script = lambda call: call.respond(401, ERROR)
        assert (await ask(node.api, body, CALLER)).status == 401
    for headers in [call.headers for call in upstream.calls] + upstream.model_headers:
        assert headers["Authorization"] == f"Bearer {SERVICE_KEY}"
        assert not any("of-the-caller" in value for value in headers.values())


async def test_the_upstream_sees_the_callers_key_where_that_is_wished(make_node, valkey, upstream):
    # given a node that passes on who calls
    node = await make_node(env={"OPENAI_API_KEY": SERVICE_KEY}, upstream_credentials="caller", log_level="DEBUG")
    upstream.script = say("a")
    body = {"messages": [{"role": "user", "content": "a prompt that is kept"}]}  # the model is asked for, too
    with nothing_of([SERVICE_KEY, "of-the-caller"], node, valkey):
        for stream in (True, False):
            assert (await ask(node.api, body, CALLER, stream=stream)).status == 200
        assert (await node.api.get("/v1/models", CALLER)).status == 200
        upstream.script = lambda call: call.respond(401, ERROR)
        assert (await ask(node.api, body, CALLER)).status == 401

    # then the upstream sees the caller, and nobody else
    for headers in [call.headers for call in upstream.calls] + upstream.model_headers:
        assert headers["Authorization"] == CALLER["Authorization"]
        assert headers["OpenAI-Organization"] == CALLER["OpenAI-Organization"]
        assert not any(SERVICE_KEY in value for value in headers.values())


async def test_a_caller_without_a_key_stays_without_where_callers_have_their_own(make_node, upstream):
    node = await make_node(env={"OPENAI_API_KEY": SERVICE_KEY}, upstream_credentials="caller")
    upstream.script = say("a")
    for stream in (True, False):
        assert (await ask(node.api, stream=stream)).status == 200
    assert (await node.api.get("/v1/models")).status == 200
    for headers in [call.headers for call in upstream.calls] + upstream.model_headers:
        assert "Authorization" not in headers
        assert not any(SERVICE_KEY in value for value in headers.values())


# Models, and upstreams by model.


async def test_models_are_the_upstreams(service, upstream):
    listed = (await service.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == upstream.models
    for model in listed["data"]:
        assert (await service.get(f"/v1/models/{model['id']}")).json() == model
    assert_refused(await service.get("/v1/models/unheard/of"), 404, "model_not_found")


@pytest.fixture
async def local():
    """A second upstream, for models of its own."""
    async with ScriptedUpstream() as server:
        server.models = ["local/a", "local/b", "gpt-stray"]
        yield server


async def test_models_lead_to_their_upstreams_each_with_its_key(make_node, upstream, local):
    # given a table of two rows, and an upstream for all else
    upstream.models = ["gpt-1", "other", "local/stray"]
    upstream.script = local.script = say("a")
    node = await make_node(
        upstreams=f"local/* {local.url}; gpt-* {upstream.url} GPT_KEY",
        env={"GPT_KEY": "sk-gpt", "OPENAI_API_KEY": SERVICE_KEY},
    )

    # when models of each are asked for, then each is answered where it should be, under its key
    for model, server, key in [
        ("local/a", local, None),
        ("gpt-1", upstream, "sk-gpt"),
        ("unheard-of", upstream, SERVICE_KEY),
        ("gpt-2", upstream, "sk-gpt"),
        ("other", upstream, SERVICE_KEY),
    ]:
        for stream in (True, False):
            seen = len(server.calls)
            assert (await ask(node.api, CHAT | {"model": model}, stream=stream)).status == 200
            (call,) = server.calls[seen:]
            assert call.request["model"] == model
            shown = call.headers.get("Authorization", "")
            assert shown == f"Bearer {key}" if key else not shown or "sk-" not in shown

    # and the list is one of all, where each model leads to the server that listed it
    listed = [model["id"] for model in (await node.api.get("/v1/models")).json()["data"]]
    assert sorted(listed) == ["gpt-1", "local/a", "local/b", "other"]
    assert (await node.api.get("/v1/models/local/b")).json()["id"] == "local/b"


async def test_a_model_without_an_upstream_is_a_404(make_node, local):
    node = await make_node(upstreams=f"local/* {local.url}", upstream_url=None)
    local.script = say("a")
    for stream in (True, False):
        assert (await ask(node.api, CHAT | {"model": "local/a"}, stream=stream)).status == 200
        assert_refused(await ask(node.api, stream=stream), 404, "model_not_found")
    assert [model["id"] for model in (await node.api.get("/v1/models")).json()["data"]] == ["local/a", "local/b"]
    assert len((await node.api.get("/generations")).json()["generations"]) == 2


@pytest.mark.parametrize(
    "rows",
    [
        "local/*",
        "local/* 127.0.0.1:1234/v1",
        "local/* http://127.0.0.1/v1 KEY further",
        "local/* http://127.0.0.1/v1 A_KEY_THAT_IS_NOT_SET",
    ],
)
async def test_a_row_that_cannot_be_read_keeps_the_node_from_starting(valkey, tmp_path, rows):
    node = Node(tmp_path / "node", valkey_url=valkey.url, upstreams=rows)
    try:
        with pytest.raises(AssertionError, match="on stdout"):
            await node.start()
        assert await node.wait() not in (0, None)
        (line,) = node.stderr.strip().splitlines()[-1:]
        assert "--upstreams" in line
        assert "Traceback" not in node.stderr
    finally:
        node.destroy()
