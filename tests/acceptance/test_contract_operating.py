"""The contract's "Operating": probes, metrics, settings, the built-in Valkey and model, and shutting down."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.api import assert_problem, text_of
from support.deadlines import eventually
from support.http1 import open_stream, request
from support.node import Node
from support.sse import messages, streaming
from support.upstream import say
from support.wire import connected

# Probes and descriptions.


async def test_health_is_about_the_process_and_readiness_about_valkey(node, valkey):
    assert (await node.api.get("/healthz")).status == 200
    assert (await node.api.get("/readyz")).status == 200
    valkey.kill()
    await eventually("not to be ready", lambda: node.api.get("/readyz"), lambda answer: answer.status == 503)
    assert (await node.api.get("/healthz")).status == 200
    valkey.start()
    await eventually("to be ready", lambda: node.api.get("/readyz"), lambda answer: answer.status == 200)


async def test_metrics_are_prometheus_text(service, upstream):
    upstream.script = say("a")
    await service.run()
    answer = await service.get("/metrics")
    assert (answer.status, answer.media_type) == (200, "text/plain")
    families = list(text_string_to_metric_families(answer.body.decode()))
    assert any(sample.value > 0 for family in families for sample in family.samples if "replay" in sample.name)


async def test_openapi_describes_every_call(service):
    answer = await service.get("/openapi.json")
    assert (answer.status, answer.media_type) == (200, "application/json")
    document = answer.json()
    assert document["openapi"].startswith("3.")
    paths = document["paths"]
    calls = {
        "/generations": {"get", "post"},
        "/generations/{id}": {"get", "delete"},
        "/generations/{id}/events": {"get"},
        "/generations/{id}/transcript": {"get"},
        "/generations/{id}/cancel": {"post"},
        "/v1/chat/completions": {"get", "post"},
        "/v1/chat/completions/{id}": {"get", "delete"},
        "/v1/chat/completions/{id}/messages": {"get"},
        "/v1/completions": {"post"},
        "/v1/completions/stream": {"get", "post"},
        "/v1/responses": {"post"},
        "/v1/responses/{id}": {"get", "delete"},
        "/v1/responses/{id}/cancel": {"post"},
        "/v1/responses/{id}/input_items": {"get"},
        "/v1/models": {"get"},
        "/v1/models/{model}": {"get"},
        "/healthz": {"get"},
        "/readyz": {"get"},
        "/metrics": {"get"},
    }
    for path, methods in calls.items():
        assert methods <= set(paths[path]), path


# Settings.


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(
            ("GET", path)
            for path in ("/", "/g/x", "/replay.js", "/dashboard/nothing", "/healthz", "/readyz", "/metrics")
        ),
        *(("GET", path) for path in ("/openapi.json", "/generations", "/generations/x", "/nothing", "/v1/models")),
        *(("GET", f"/generations/{{id}}{rest}") for rest in ("", "/events", "/events?format=openai", "/transcript")),
        *(
            ("GET", path)
            for path in ("/events?generation={id}", "/events?generation=x", "/generations/x/events?after=y")
        ),
        *(("HEAD", path) for path in ("/", "/generations", "/generations/{id}")),
        *(("OPTIONS", path) for path in ("/generations", "/nothing")),
        *(("POST", path) for path in ("/healthz", "/generations", "/generations/{id}/cancel", "/v1/chat/completions")),
        ("DELETE", "/generations/{id}"),
        ("DELETE", "/generations/x"),
    ],
)
async def test_no_answer_names_a_version_or_lets_a_browser_guess(service, upstream, method, path):
    upstream.script = say("a")
    stream = await open_stream(service.at(path.format(id=await service.run())), method=method)
    assert (stream.headers["server"], stream.headers["x-content-type-options"]) == ("replay", "nosniff")
    assert stream.headers["cache-control"]
    stream.hang_up()


@pytest.mark.parametrize(
    ("method", "path", "detail"),
    [
        ("GET", "/nothing", "GET /nothing: there is no such path"),
        ("GET", "/v1/nothing", "GET /v1/nothing: there is no such path"),
        ("PUT", "/generations", "PUT /generations: expected GET, HEAD, POST"),
        ("GET", "/v1/responses", "GET /v1/responses: expected POST"),
    ],
)
async def test_what_nobody_answers_is_told_with_what_was_expected(service, method, path, detail):
    answer = (await request(method, service.at(path))).json()
    assert (answer["error"]["message"] if "error" in answer else answer["detail"]) == detail


@pytest.mark.parametrize("line", ["nonsense", "GET / HTTP/9.9", "GET /" + "x" * 40_000 + " HTTP/1.1"])
async def test_neither_does_an_answer_to_what_is_no_request(service, line):
    async with connected(service.url) as wire:
        await wire.send(f"{line}\r\nHost: localhost\r\n\r\n")
        said = (await wire.reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert "\r\nserver: replay\r\n" in said
        assert "\r\nx-content-type-options: nosniff\r\n" in said


async def test_ready_line_is_the_first_on_stdout_and_tells_the_taken_port(start_node, valkey, upstream):
    node = await start_node(port=0, valkey_url=valkey.url, upstream_url=upstream.url)
    assert node.stdout[0] == f"replay is ready at {node.url}\n"
    assert node.port != 0
    assert (await node.api.get("/readyz")).status == 200


async def _greeting(node: Node) -> str:
    """All that it prints when it is ready."""

    async def printed() -> list[str]:
        return list(node.stdout)

    return "".join(await eventually("the greeting", printed, lambda lines: "curl" in "".join(lines)))


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_open_address_is_told_with_one_that_can_be_opened(workers, start_node, valkey, upstream):
    node = await start_node(host="0.0.0.0", valkey_url=valkey.url, upstream_url=upstream.url, workers=workers)
    greeting = await _greeting(node)
    assert node.url == f"http://localhost:{node.port}"
    assert f"Open {node.url}/ in a browser" in greeting
    assert f" at http://{socket.gethostname()}:{node.port}/. " in greeting
    assert "0.0.0.0 (--host)" in greeting
    assert "whoever reaches the port may" in greeting
    assert (await node.api.get("/readyz")).status == 200


async def test_an_address_of_this_machine_alone_is_no_warning(start_node, valkey, upstream):
    node = await start_node(host="localhost", valkey_url=valkey.url, upstream_url=upstream.url)
    assert "whoever" not in await _greeting(node)


async def test_every_flag_has_an_environment_variable(start_node, valkey, upstream):
    upstream.script = say("a")
    env = {
        "REPLAY_PORT": "0",
        "REPLAY_VALKEY_URL": valkey.url,
        "REPLAY_UPSTREAM_URL": upstream.url,
        "REPLAY_RETRY_MS": "77",
    }
    node = await start_node(port=None, env=env)
    answer = await node.api.read(await node.api.run())
    assert answer.body.startswith(b"retry: 77\n")
    assert text_of(messages(answer.body)) == "a"


async def test_valkey_is_reached_by_a_unix_socket_too(start_node, valkey, upstream):
    upstream.script = say("a")
    node = await start_node(valkey_url=valkey.unix_url, upstream_url=upstream.url)
    assert text_of(await node.api.log(await node.api.run())) == "a"


async def test_openais_own_variables_name_the_upstream(start_node, valkey, upstream):
    # given no upstream of ours, but the variables that OpenAI's SDK reads
    upstream.script = say("a")
    env = {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "sk-test"}
    node = await start_node(valkey_url=valkey.url, env=env)

    # then they are used
    assert text_of(await node.api.log(await node.api.run())) == "a"
    assert upstream.calls[0].headers["authorization"] == "Bearer sk-test"


async def test_without_valkey_and_upstream_the_node_brings_its_own(start_node, tmp_path):
    # given nothing but a data directory
    node = await start_node(data_dir=tmp_path / "data", demo_tokens_per_second=5000, drain_spread_s=0)

    # when a generation is asked for, then the model `demo` answers from the package
    id = await node.api.run({"prompt": "Hi"})
    generation = await node.api.generation(id)
    assert (generation["status"], generation["model"]) == ("completed", "demo")
    log = await node.api.log(id)
    assert len(text_of(log)) > 100
    assert "demo" in "".join(event.data for event in log).lower()

    # and says so, and the record outlives the node
    assert any(path.name.endswith(".aof") for path in (tmp_path / "data").rglob("*"))
    assert await node.stop() == 0
    await node.start()
    assert await node.api.log(id) == log


async def test_the_nodes_own_valkey_keeps_what_was_acknowledged_when_the_node_is_killed(start_node, tmp_path, upstream):
    # given a reader that has been shown a token
    node = await start_node(data_dir=tmp_path / "data", upstream_url=upstream.url, lease_s=1)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    await call.say("shown")
    await node.api.has(id, 2)
    async with streaming(node.api.events_url(id)) as stream:
        shown = messages(await stream.until(b"event: live"))[:2]

    # when the node is killed and started again
    node.kill()
    await node.start()

    # then a replay shows it again, and the generation has an end
    assert (await node.api.ended(id))["status"] == "interrupted"
    assert (await node.api.log(id))[:2] == shown


# Shutting down.


async def test_an_idle_node_drains_at_once_with_exit_code_0(node):
    begun = time.monotonic()
    assert await node.stop() == 0
    assert time.monotonic() - begun < 3


async def test_draining_node_is_not_ready_and_starts_nothing_new(make_node, upstream):
    # given a node that waits for a generation of its own
    node = await make_node(drain_grace_s=5)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    node.terminate()

    # then it is not ready, alive, takes no new work, and still serves its readers
    await eventually("not to be ready", lambda: node.api.get("/readyz"), lambda answer: answer.status == 503)
    assert (await node.api.get("/healthz")).status == 200
    assert_problem(await node.api.post("/generations", {"prompt": "Hi", "model": "m"}), 503)
    await call.say("a")
    await node.api.has(id, 2)

    # when the generation is through, then so is the node
    await call.finish()
    assert await node.wait() == 0


async def test_generation_that_finishes_within_the_grace_is_completed(make_node, upstream):
    node, other = await make_node(drain_grace_s=5), await make_node()
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with node.api.source(id) as here, other.api.source(id) as there:
        await here.event("live")
        await there.event("live")
        node.terminate()
        await eventually("not to be ready", lambda: node.api.get("/readyz"), lambda answer: answer.status == 503)
        await call.say("a")
        await call.finish()
        assert (await here.event("end")).json()["status"] == "completed"
        assert (await there.event("end")).json()["status"] == "completed"
        assert await node.wait() == 0


async def test_generation_that_does_not_finish_is_interrupted_by_the_shutdown(make_node, upstream):
    node, other = await make_node(drain_grace_s=0.3), await make_node()
    id = (await node.api.start())["id"]
    call = await upstream.called()
    async with other.api.source(id) as source:
        await call.say("partial")
        await source.event("token")

        # when its node is told to stop
        assert await node.stop() == 0

        # then it has ended, and readers elsewhere know
        end = (await source.event("end")).json()
        assert (end["status"], end["error"]["code"]) == ("interrupted", "shutdown")
        assert text_of(source.received) == "partial"
    await call.hung_up()
    assert (await other.api.generation(id))["status"] == "interrupted"


async def test_readers_of_a_draining_node_are_aborted_and_go_on_elsewhere(make_node, upstream):
    # given readers on a node that does not produce what they watch
    producing, draining = await make_node(), await make_node(drain_grace_s=0.2, drain_spread_s=0.3)
    id = (await producing.api.start())["id"]
    call = await upstream.called()
    async with (
        streaming(draining.api.events_url(id)) as stream,
        streaming(draining.api.events_url(id), {"Accept": "application/x-ndjson"}) as lines,
    ):
        await stream.until(b"event: live")
        await lines.until(b'"start"')

        # when it drains, then their responses are cut short and not ended: the generation goes on
        draining.terminate()
        assert not (await lines.to_end()).clean
        answer = await stream.to_end()
        assert not answer.clean
        assert await draining.wait() == 0

    # and from their cursors they miss nothing
    await call.say("a")
    cursor = messages(answer.body)[-1].last_event_id
    async with producing.api.source(id, last_event_id=cursor) as source:
        assert (await source.event("token")).json()["content"] == "a"
        await call.finish()
        await source.event("end")


async def test_source_comes_back_to_a_node_that_was_restarted(make_node, upstream):
    # given an EventSource on a node that drains and is started again on its port
    producing, restarting = await make_node(), await make_node()
    id = (await producing.api.start())["id"]
    call = await upstream.called()
    async with restarting.api.source(id) as source:
        await call.say("a")
        await source.event("token")
        assert await restarting.stop() == 0
        await call.say("b")
        await restarting.start()
        await call.say("c")
        await call.finish()
        await source.event("end")
        assert source.received == await producing.api.log(id)


async def test_a_second_sigterm_stops_now(make_node, upstream):
    # given a node that would wait a minute for its generation
    node, other = await make_node(drain_grace_s=60), await make_node()
    id = (await node.api.start())["id"]
    await upstream.called()
    node.terminate()
    await eventually("not to be ready", lambda: node.api.get("/readyz"), lambda answer: answer.status == 503)
    assert node.running

    # when it is told again
    node.terminate()

    # then it is gone, and its generation has an end nevertheless
    await node.wait(3)
    assert (await other.api.ended(id))["status"] == "interrupted"


async def test_sigterm_during_an_outage_of_valkey_does_not_hang(node, valkey, upstream):
    await node.api.start()
    await upstream.called()
    valkey.kill()
    node.terminate()
    await node.wait(9)
    valkey.start()


async def test_other_requests_are_finished_while_draining(make_node, upstream):
    # given a request that waits for the end of a generation
    node = await make_node(drain_grace_s=5)
    id = (await node.api.start())["id"]
    call = await upstream.called()
    waiting = asyncio.create_task(request("GET", node.api.at(f"/generations/{id}/transcript", wait=8)))
    await call.say("a")
    await node.api.has(id, 2)
    node.terminate()
    await eventually("not to be ready", lambda: node.api.get("/readyz"), lambda answer: answer.status == 503)
    await call.finish()
    answer = await waiting
    assert (answer.status, answer.clean) == (200, True)
    assert answer.json()["text"] == "a"
    assert await node.wait() == 0


@pytest.mark.parametrize("flag", ["--lease-s=nonsense", "--no-such-flag"])
async def test_a_setting_that_cannot_be_used_is_said_and_nothing_is_started(start_node, flag):
    import subprocess
    import sys

    result = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "replay", "serve", flag], capture_output=True, timeout=10, check=False
    )
    assert result.returncode != 0
    assert b"replay is ready" not in result.stdout
    assert flag.strip("-").partition("=")[0].encode() in result.stderr
