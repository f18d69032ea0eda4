# SPDX-License-Identifier: GPL-3.0-or-later
"""Key files keep the secret, tell whose they are, and open only whole and with the right passphrase."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import InvalidInput
from node.identity import Identity
from node.keystore import (
    Cost,
    passphrase_from_environment,
    passphrase_from_file,
    read_key,
    read_public,
    warn_if_readable,
    write_key,
)

PASSPHRASE = b"correct horse"
IDENTITY = Identity(bytes(range(32)), "St. Anna")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key.json"
    write_key(path, IDENTITY, PASSPHRASE, Cost.LIGHT)
    return path


def test_a_written_key_reads_back(written: Path) -> None:
    identity = read_key(written, PASSPHRASE)
    assert identity.seed == IDENTITY.seed
    assert identity.public == IDENTITY.public


def test_the_public_part_reads_without_the_passphrase(written: Path) -> None:
    assert read_public(written) == IDENTITY.public


def test_the_file_is_for_its_owner_only(written: Path) -> None:
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert warn_if_readable(written) == ""


def test_a_file_that_others_may_read_is_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.touch()
    path.chmod(0o644)
    assert f"chmod 600 {path}" in warn_if_readable(path)


def test_the_file_holds_no_secret_in_clear_and_leaves_no_temporary(written: Path) -> None:
    text = written.read_text()
    secrets = (IDENTITY.seed, IDENTITY.signing.secret, IDENTITY.chameleon_secret, IDENTITY.network_seed)
    for secret in (*secrets, IDENTITY.reveal_secret):
        assert secret.hex() not in text
    assert list(written.parent.iterdir()) == [written]


def test_an_existing_file_is_never_overwritten(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(InvalidInput, match="never overwritten"):
        write_key(written, Identity(bytes(32)), PASSPHRASE, Cost.LIGHT)
    assert written.read_bytes() == before


def test_a_wrong_passphrase_says_so_without_showing_it(written: Path) -> None:
    with pytest.raises(InvalidInput, match="wrong passphrase") as caught:
        read_key(written, b"battery staple")
    assert "battery" not in str(caught.value)


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        write_key(tmp_path / "key.json", IDENTITY, b"", Cost.LIGHT)
    assert list(tmp_path.iterdir()) == []


def _set(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


CHANGES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_set("spchain", "name", value=7), "no SPChain key file"),
    (_set("spchain", "address", value="zz"), "no hexadecimal"),
    (_set("spchain", "address", value="00"), "1 bytes instead of 20"),
    (_set("spchain", "address", value="00" * 20), "not those of the secret"),
    (_set("spchain", "chameleon_key", value="00" * 32), "not those of the secret"),
    (_set("spchain", "reveal_key", value="00" * 48), "not those of the secret"),
    (_set("spchain", "reveal_key", value=""), "0 bytes instead of 48"),
    (_set("spchain", "format", value=1), "48 bytes instead of 0"),
    (_set("spchain", "format", value=2), "20 bytes instead of 0"),
    (_set("spchain", "format", value=4), "format 4"),
    (_set("spchain", "format", value=0), "format 0"),
    (_set("spchain", "identifier", value=""), "0 bytes instead of 20"),
    (_set("spchain", "identifier", value="00" * 20), "not those of the secret"),
    (_set("spchain", "generation", value=1), "not those of the secret"),
    (_set("version", value=4), "version 4"),
    (_set("crypto", "ciphertext", value="00" * 32), "does not open"),
    (_set("crypto", "ciphertext", value="xx"), "does not open"),
    (_set("crypto", "mac", value="00" * 32), "does not open"),
    (_set("crypto", "cipherparams", value={}), "does not open"),
    (_set("crypto", "kdf", value="none"), "accepted"),
    (_set("crypto", "kdfparams", "n", value=2**40), "accepted"),
    (_set("crypto", "kdfparams", "n", value=-4), "accepted"),
    (_set("crypto", "kdfparams", "r", value=2**20), "accepted"),
    (_set("crypto", "kdfparams", "p", value=2**20), "accepted"),
    (_set("crypto", "kdfparams", "dklen", value=2**30), "accepted"),
    (_set("crypto", "kdfparams", "salt", value="é"), "does not open"),
    (_set("crypto", value=[]), "no SPChain key file"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_a_changed_file_is_refused_with_its_fault(
    written: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    document = json.loads(written.read_bytes())
    change(document)
    path = tmp_path / "key.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match=text):
        read_key(path, PASSPHRASE)


def test_a_key_file_of_the_first_release_opens(written: Path, tmp_path: Path) -> None:
    document = json.loads(written.read_bytes())
    document["spchain"]["format"] = 1
    for later in ("reveal_key", "identifier", "generation"):
        del document["spchain"][later]
    path = tmp_path / "key.json"
    path.write_text(json.dumps(document))
    assert read_public(path).reveal_key == b""
    assert read_key(path, PASSPHRASE).public == IDENTITY.public


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10_000, b"x" * 100_000])
def test_rubbish_is_no_key_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput):
        read_public(path)


def test_a_truncated_file_is_refused_at_every_length(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes().rstrip()
    path = tmp_path / "key.json"
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidInput):
            read_key(path, PASSPHRASE)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read_public(tmp_path / "none.json")
    with pytest.raises(InvalidInput, match="not a regular file"):
        read_public(tmp_path)


def test_the_passphrase_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(b"with space \r\nnot this")
    assert passphrase_from_file(path) == b"with space "
    path.write_bytes(b"\nlater")
    with pytest.raises(InvalidInput, match="empty line"):
        passphrase_from_file(path)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(InvalidInput, match="5000 bytes"):
        passphrase_from_file(path)


def test_the_environment_gives_a_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPCHAIN_PASSPHRASE", raising=False)
    assert passphrase_from_environment() is None
    monkeypatch.setenv("SPCHAIN_PASSPHRASE", "schön")
    assert passphrase_from_environment() == "schön".encode()
