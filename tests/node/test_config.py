# SPDX-License-Identifier: GPL-3.0-or-later
"""One configuration out of file, environment and flags; every error names its source, the value and the remedy."""

import contextlib
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidInput
from node.config import NodeConfig, is_loopback, load_config, render_config, split_listen, unknown_variables


def configured(directory: Path, text: str) -> NodeConfig:
    (directory / "config.toml").write_text(text)
    return load_config(directory, {})


def test_defaults_are_safe_and_need_no_file(tmp_path: Path) -> None:
    config = load_config(tmp_path, {})
    assert config.data_dir == tmp_path
    assert config.genesis_file == tmp_path / "genesis.msgpack"
    assert is_loopback(split_listen(config.api_listen)[0])
    assert config.replicas == 3


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("timeout_ms = 200\nheartbeat_ms = 200\nreplicas = 2\n")
    environment = {"SPCHAIN_TIMEOUT_MS": "300", "SPCHAIN_HEARTBEAT_MS": "300", "SPCHAIN_NODE": "http://elsewhere"}
    config = load_config(tmp_path, environment, {"timeout_ms": 400, "heartbeat_ms": None})
    assert (config.timeout_ms, config.heartbeat_ms, config.replicas, config.p2p_max_peers) == (400, 300, 2, 50)


def test_a_misspelt_variable_is_found_and_those_of_others_are_not() -> None:
    others = {"SPCHAIN_NODE": "http://elsewhere", "SPCHAIN_PASSPHRASE": "x", "SPCHAIN_SHELL_PROMPT": "x", "HOME": "/"}
    assert unknown_variables({"SPCHAIN_HEARBEAT_MS": "5", "SPCHAIN_HEARTBEAT_MS": "5", **others}) == {
        "SPCHAIN_HEARBEAT_MS": "SPCHAIN_HEARTBEAT_MS"
    }


def test_a_name_of_people_is_taken_as_it_is(tmp_path: Path) -> None:
    assert configured(tmp_path, 'name = "St. Anna\'s (Graz)"').name == "St. Anna's (Graz)"


def test_the_data_directory_comes_from_flag_or_environment(tmp_path: Path) -> None:
    assert load_config(None, {"SPCHAIN_DATA_DIR": str(tmp_path)}).data_dir == tmp_path
    assert load_config(tmp_path, {"SPCHAIN_DATA_DIR": "/elsewhere"}).data_dir == tmp_path


def test_environment_reads_lists_switches_and_numbers(tmp_path: Path) -> None:
    environment = {
        "SPCHAIN_P2P_BOOTSTRAP": "/ip4/127.0.0.1/tcp/4001/p2p/a, /ip4/127.0.0.1/tcp/4002/p2p/b",
        "SPCHAIN_P2P_MDNS": "true",
    }
    config = load_config(tmp_path, environment)
    assert config.p2p_bootstrap == ("/ip4/127.0.0.1/tcp/4001/p2p/a", "/ip4/127.0.0.1/tcp/4002/p2p/b")
    assert config.p2p_mdns is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timeout_ms = 'soon'", "timeout_ms = 'soon'"),
        ("timeout_ms = 1", "greater than or equal to 50"),
        ("timeout_ms = 1.5", "timeout_ms = 1.5"),
        ("timout_ms = 100", "did you mean 'timeout_ms'"),
        ("zzz = 100", "known keys"),
        ("log_format = 'xml'", "'console' or 'json'"),
        ("p2p_listen = '4001'", "is no address and port"),
        ("p2p_listen = 'example.org:1'", "is no IP address"),
        ("p2p_listen = '[127.0.0.1]:1'", "brackets"),
        ("p2p_listen = '0.0.0.0:70000'", "is no address and port"),
        ("p2p_bootstrap = ['127.0.0.1:4001']", "is no multiaddress"),
        ("p2p_bootstrap = ['/ip4/127.0.0.1/tcp/4001']", "names no peer"),
        ("p2p_bootstrap = '/ip4/127.0.0.1/tcp/4001/p2p/a'", "p2p_bootstrap = '/ip4"),
        ("api_listen = '0.0.0.0:8080'", "api_token_file"),
        ("api_listen = '[::]:8080'", "api_token_file"),
        ("name = '" + "x" * 65 + "'", "at most 64"),
        ("name = 'bell\\u0007'".replace("'", '"'), "cannot be shown"),
        ("blob_capacity_bytes = 1", "greater than or equal to"),
        ("data_dir = '/elsewhere'", "remove the key"),
        ("timeout_ms = ", "is no TOML"),
        ("timeout_ms = 100\ntimeout_ms = 100", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_file_value_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        configured(tmp_path, text)
    assert expected in str(caught.value)
    assert str(tmp_path / "config.toml") in str(caught.value)


def test_a_wrong_variable_or_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"environment SPCHAIN_REPLICAS: replicas = 'many'"):
        load_config(tmp_path, {"SPCHAIN_REPLICAS": "many"})
    with pytest.raises(InvalidInput, match=r"command line: log_level = 'loud'"):
        load_config(tmp_path, {}, {"log_level": "loud"})


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00", b"a" * 100_000])
def test_a_corrupt_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"config\.toml"):
        load_config(tmp_path, {})


@given(content=st.binary(max_size=300))
def test_any_bytes_give_a_configuration_or_a_typed_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("config")
    (directory / "config.toml").write_bytes(content)
    with contextlib.suppress(InvalidInput):
        load_config(directory, {})


def test_an_api_open_to_others_is_accepted_with_a_token_file(tmp_path: Path) -> None:
    config = configured(tmp_path, "api_listen = '0.0.0.0:8080'\napi_token_file = 'token'")
    assert config.api_token_file == tmp_path / "token"


@given(name=st.text(max_size=40), mdns=st.booleans(), count=st.integers(0, 2**40))
def test_a_rendered_configuration_reads_back(name: str, mdns: bool, count: int) -> None:
    values = {"name": name, "p2p_mdns": mdns, "blob_capacity_bytes": count, "p2p_bootstrap": [name, "a\\b\"c'"]}
    assert tomllib.loads(render_config(values)) == values


def test_the_rendered_file_explains_every_field() -> None:
    text = render_config({})
    for field, info in NodeConfig.model_fields.items():
        assert info.description, f"node/config.py: {field} has no text beneath it; say what it means and its unit"
        if field != "data_dir":
            assert re.search(rf"^# {field} = ", text, re.MULTILINE)
    assert tomllib.loads(text) == {}
