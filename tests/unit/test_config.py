"""Settings: where they come from, what they refuse, and that they are all documented."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest
from support.pages import PAGES, read

from replay import config
from replay.config import Settings, flag, load, variable
from replay.errors import InvalidSetting

PAGE = "deploy/README.md"
SETTINGS = fields(Settings)
PUBLIC = [setting for setting in SETTINGS if not setting.metadata["secret"]]
EXAMPLES = {"allowed_hosts": "replay.example", "cors_origins": "https://app.example"}
NUMBERS = [setting for setting in SETTINGS if type(setting.default) in (int, float)]


def parse(*arguments: str) -> dict[str, str | None]:
    """Flags as the command line gives them."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    config.add_flags(parser)
    return vars(parser.parse_args(arguments))


def by_name(setting: object) -> str:
    return getattr(setting, "name", str(setting))


# Where they come from.


def test_flag_beats_environment_beats_default():
    environ = {"REPLAY_PORT": "81", "REPLAY_LEASE_S": "3.5"}
    settings = load(parse("--port", "82"), environ)
    assert (settings.port, settings.lease_s, settings.host) == (82, 3.5, "127.0.0.1")
    assert load(parse(), environ).port == 81
    assert load(parse(), {}) == Settings()


@pytest.mark.parametrize("setting", SETTINGS, ids=by_name)
def test_every_setting_can_be_given_by_flag_and_by_environment(setting):
    text = EXAMPLES.get(setting.name) or (setting.metadata["choices"] or ("4321",))[0]
    expected = {int: 4321, float: 4321.0, type(Path()): Path("4321"), tuple: (text,)}.get(type(setting.default), text)
    assert getattr(load({}, {variable(setting): text}), setting.name) == expected
    if setting in PUBLIC:
        assert getattr(load(parse(flag(setting), text), {}), setting.name) == expected


def test_secret_has_no_flag():
    secrets = [setting for setting in SETTINGS if setting.metadata["secret"]]
    assert [setting.name for setting in secrets] == ["upstream_api_key"]
    for setting in secrets:
        with pytest.raises(SystemExit):
            parse(flag(setting), "x")


def test_empty_variable_counts_as_none():
    settings = load({}, {"REPLAY_PORT": "", "REPLAY_VALKEY_URL": ""})
    assert (settings.port, settings.valkey_url) == (8080, None)


def test_variables_of_others_are_left_alone():
    assert load({}, {"PORT": "1", "replay_port": "2", "REPLAY_NO_SUCH_SETTING": "3"}) == Settings()


# What they refuse.


@pytest.mark.parametrize("setting", NUMBERS, ids=by_name)
@pytest.mark.parametrize("text", ["", "x", "1,5", "1s", "0x10", "nan"])
def test_value_that_does_not_parse_names_its_setting(setting, text):
    if text:
        with pytest.raises(InvalidSetting, match=re.escape(variable(setting)) + "|" + re.escape(flag(setting))):
            load({}, {variable(setting): text})
    if setting in PUBLIC and text:
        with pytest.raises(InvalidSetting, match=re.escape(flag(setting))):
            load(parse(flag(setting), text), {})


@pytest.mark.parametrize("setting", NUMBERS, ids=by_name)
def test_value_below_the_least_names_its_setting(setting):
    least = setting.metadata["least"]
    assert getattr(load({setting.name: str(least)}, {}), setting.name) == least
    with pytest.raises(InvalidSetting, match=f"{flag(setting)}: expected (at least {least}|a number from {least} to)"):
        load({setting.name: str(least - 1)}, {})


@pytest.mark.parametrize("setting", [each for each in PUBLIC if type(each.default) is not tuple], ids=by_name)
def test_flag_without_a_value_names_its_setting(setting):
    with pytest.raises(InvalidSetting, match=re.escape(flag(setting)) + ": expected "):
        load({setting.name: ""}, {})


def test_ttl_above_the_longest_that_callers_may_ask_for_is_a_contradiction():
    assert load({"ttl_s": "60", "max_ttl_s": "60"}, {}).ttl_s == 60
    with pytest.raises(InvalidSetting, match="--ttl-s: expected at most --max-ttl-s, which is 60, got 61"):
        load({"ttl_s": "61", "max_ttl_s": "60"}, {})


def test_password_in_a_wrong_origin_is_not_shown():
    with pytest.raises(InvalidSetting, match="--cors-origins: expected ") as raised:
        load({"cors_origins": "https://user:hunter22@a.example"}, {})
    assert "hunter22" not in str(raised.value)


def test_lease_that_is_not_finite_names_its_setting():
    with pytest.raises(InvalidSetting, match="--lease-s"):
        load({"lease_s": "inf"}, {})


@pytest.mark.parametrize("port", [65_536, 70_000])
def test_port_that_is_none_names_its_setting(port):
    with pytest.raises(InvalidSetting, match="--port"):
        load({"port": str(port)}, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("embedded_fsync", "no"),
        ("embedded_fsync", "ALWAYS"),
        ("log_level", "info"),
        ("log_level", "TRACE"),
        ("upstream_credentials", "mine"),
        ("upstream_responses", "maybe"),
    ],
)
def test_value_that_is_not_one_of_a_few_names_its_setting_and_them(name, text):
    with pytest.raises(InvalidSetting, match=f"--{name.replace('_', '-')}: expected .* or .*, got '{text}'"):
        load({name: text}, {})


@pytest.mark.parametrize("separator", [",", ", ", " ", "\n", " , "])
def test_members_of_a_list_are_separated_by_commas_or_blanks(separator):
    settings = load({"allowed_hosts": separator.join(["a.example", "*.b.example", "[::1]"[1:-1]])}, {})
    assert settings.allowed_hosts == ("a.example", "*.b.example", "::1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("allowed_hosts", "https://a.example"),
        ("allowed_hosts", "a.example/"),
        ("allowed_hosts", "a.*.example"),
        ("cors_origins", "a.example"),
        ("cors_origins", "https://a.example/"),
        ("cors_origins", "https://user@a.example"),
        ("cors_origins", "https://a.example, null"),
        ("cors_origins", "https://*.example"),
        ("key_prefix", "a{b}:"),
        ("key_prefix", "a b"),
    ],
)
def test_member_that_cannot_be_used_names_its_setting(name, text):
    with pytest.raises(InvalidSetting, match=re.escape(f"--{name.replace('_', '-')}: expected ")):
        load({name: text}, {})


# What is said of them.


@pytest.mark.parametrize("setting", SETTINGS, ids=by_name)
def test_every_setting_says_what_it_is_for(setting):
    assert len(setting.metadata["help"]) > 10
    if setting in NUMBERS:
        assert setting.metadata["least"] is not None


@pytest.mark.parametrize("setting", PUBLIC, ids=by_name)
def test_help_of_the_command_line_names_every_flag_and_its_default(setting):
    parser = argparse.ArgumentParser(
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=60, width=1000)
    )
    config.add_flags(parser)
    (line,) = [line for line in parser.format_help().splitlines() if line.strip().startswith(flag(setting) + " ")]
    assert setting.metadata["help"] in line
    assert setting.default in (None, ()) or re.search(rf"\(default {re.escape(str(setting.default))}[):]", line)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("max_body_bytes", "8388608: 8 MiB"),
        ("write_buffer_bytes", "65536: 64 KiB"),
        ("max_ttl_s", "2592000: 30 d"),
        ("upstream_idle_timeout_s", "300.0: 5 min"),
        ("idle_connection_s", "75.0"),
        ("lease_s", "15.0"),
        ("max_generations", "10000"),
    ],
)
def test_long_numbers_are_also_said_as_people_say_them(name, words):
    (setting,) = (setting for setting in SETTINGS if setting.name == name)
    assert config.in_words(setting) == words


@pytest.mark.parametrize("setting", PUBLIC, ids=by_name)
def test_page_for_operators_says_of_every_setting_what_its_help_says(setting):
    default = "" if setting.default in (None, ()) else f", default `{setting.default}`"
    entry = f"- `{flag(setting)}` (`{variable(setting)}`{default}): {setting.metadata['help']}"
    listed = re.findall(r"^- .*(?:\n  .*)*", read(PAGE), re.MULTILINE)
    assert entry in [" ".join(each.split()) for each in listed]


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each not in PUBLIC], ids=by_name)
def test_page_for_operators_names_every_secret(setting):
    assert f"\n- `{variable(setting)}` (no flag" in read(PAGE)


@pytest.mark.parametrize("page", PAGES)
def test_page_names_no_setting_that_does_not_exist(page):
    text = read(page)
    variables = set(re.findall(r"\bREPLAY_[A-Z][A-Z_]*[A-Z]\b", text))
    assert variables - {"REPLAY_URL"} <= {variable(setting) for setting in SETTINGS}  # which the clients read
