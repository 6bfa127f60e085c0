"""Which upstream answers for which model, as the settings say."""

from __future__ import annotations

from typing import Any

import pytest

from replay.app import build_upstream
from replay.config import Settings
from replay.errors import InvalidSetting, ModelNotFound
from replay.upstream import Api, Call
from replay.upstream.demo import DemoUpstream
from replay.upstream.openai import OpenAIUpstream
from replay.upstream.table import UpstreamTable


class Named:
    """An upstream that tells which one it is."""

    def __init__(self, name: str, *models: str) -> None:
        self.name = name
        self.listed = models

    async def default_model(self, credentials: Any = None) -> str:
        return self.listed[0]

    def notice(self, model: str) -> str | None:
        return f"{self.name} answers for {model}"

    def speaks_responses(self, model: str) -> bool | None:
        return self.name == "openai"

    async def models(self, credentials: Any = None) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name} for name in self.listed]}

    def stream(self, call: Call) -> Any:
        return self.name

    async def close(self) -> None:
        self.listed = ()


def table() -> UpstreamTable:
    return UpstreamTable(
        [
            ("local/*", Named("local", "local/a", "gpt-like")),
            ("gpt-*", Named("openai", "gpt-5", "local/b", "o9")),
            ("*", Named("others", "gpt-6", "mistral")),
        ]
    )


@pytest.mark.parametrize(
    ("model", "name"), [("local/llama", "local"), ("gpt-5", "openai"), ("GPT-5", "others"), ("x/gpt-5", "others")]
)
def test_first_row_that_fits_answers(model, name):
    assert table().stream(Call(api=Api.CHAT, model=model, body=b"{}")) == name
    assert table().notice(model) == f"{name} answers for {model}"
    assert table().speaks_responses(model) is (name == "openai")


async def test_list_has_each_model_where_it_would_be_asked_for():
    assert [model["id"] for model in (await table().models())["data"]] == ["local/a", "gpt-5", "mistral"]
    assert await table().default_model() == "gpt-6"  # the last row is for everything else


async def test_model_of_no_row_is_not_found():
    rows = UpstreamTable([("local/*", Named("local", "gpt-5"))])
    with pytest.raises(ModelNotFound, match=r"'gpt-5'.*local/\*.*--upstreams"):
        rows.stream(Call(api=Api.CHAT, model="gpt-5", body=b"{}"))
    with pytest.raises(ModelNotFound, match="name one in the request"):
        await rows.default_model()


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "OPENAI_API_KEY"])
def test_variable_that_is_set_to_nothing_names_no_upstream(variable):
    # as compose files set those that their reader has not
    assert isinstance(build_upstream(Settings(), {variable: ""}), DemoUpstream)


def test_what_the_settings_name_is_what_answers():
    assert isinstance(build_upstream(Settings(), {}), DemoUpstream)
    assert isinstance(build_upstream(Settings(), {"OPENAI_API_KEY": "k"}), OpenAIUpstream)
    assert isinstance(build_upstream(Settings(upstream_url="http://127.0.0.1:1/v1"), {}), OpenAIUpstream)
    only_rows = build_upstream(
        Settings(upstreams="a* http://127.0.0.1:1/v1;\nb* https://127.0.0.1:2/v1 KEY"), {"KEY": "k"}
    )
    assert isinstance(only_rows, UpstreamTable)
    with pytest.raises(ModelNotFound):
        only_rows.notice("c")
    with_others = build_upstream(Settings(upstreams="a* http://127.0.0.1:1/v1"), {"OPENAI_API_KEY": "k"})
    assert with_others.notice("c") is None


@pytest.mark.parametrize("rows", ["a*", "a* ftp://x", "a* http://x KEY more", "http://x a*", "a* http://x; b*"])
def test_row_that_cannot_be_read_names_the_setting(rows):
    with pytest.raises(InvalidSetting, match="--upstreams: expected a pattern, a base URL"):
        build_upstream(Settings(upstreams=rows), {"KEY": "k"})


def test_key_that_is_not_there_is_named_and_never_shown():
    with pytest.raises(
        InvalidSetting, match="--upstreams: expected a key in the variable KEY, which is not set, for row 1"
    ):
        build_upstream(Settings(upstreams="a* http://x KEY"), {"OTHER": "secret"})
    for row in (
        "a* http://x sk-in-the-wrong-place",
        "a* http://x AKIASECRET0EXAMPLE",
        "sk-secret http:/x",
        "http://u:p@x/v1",
    ):
        with pytest.raises(InvalidSetting, match="row 1") as raised:
            build_upstream(Settings(upstreams=row), {})
        assert not {"sk-in", "AKIA", "sk-secret", "u:p"} & {
            word for word in ("sk-in", "AKIA", "sk-secret", "u:p") if word in str(raised.value)
        }
    call = Call(api=Api.CHAT, model="m", body=b"{}", credentials={"Authorization": "Bearer secret"})
    assert "secret" not in repr(call)
