# SPDX-License-Identifier: GPL-3.0-or-later
"""The search for leaks finds what leaks, in every form that it claims to know."""

import base64
import gzip
import json
import zlib
from pathlib import Path

import pytest

from tests.system import leaks
from tests.system.kit import BUNDLE
from tests.system.leaks import content_of, forms_of, found_in

SECRET = bytes(range(7, 39))


@pytest.mark.parametrize(
    "leak",
    [
        SECRET,
        SECRET[::-1],
        SECRET.hex().encode(),
        SECRET.hex().upper().encode(),
        *(base64.b64encode(b"x" * before + SECRET + b"yz") for before in range(4)),
        *(base64.urlsafe_b64encode(b"\xff" * before + SECRET) for before in range(4)),
        SECRET[::-1].hex().encode(),
        base64.b64encode(SECRET[::-1]),
        json.dumps({"trapdoor": str(int.from_bytes(SECRET, "big"))}).encode(),
        str(int.from_bytes(SECRET, "little")).encode(),
        json.dumps(list(SECRET)).encode(),
        json.dumps(list(SECRET), separators=(",", ":")).encode(),
        f"Identity(seed={SECRET!r})".encode(),
    ],
)
def test_a_secret_is_found_in_every_form(leak: bytes, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"before" + leak + b"after")
    assert found_in([tmp_path], forms_of(SECRET))


@pytest.mark.parametrize(
    "leak",
    [
        BUNDLE,
        zlib.compress(BUNDLE),
        gzip.compress(BUNDLE, 6),
        base64.b64encode(BUNDLE),
        base64.b64encode(zlib.compress(BUNDLE)),
        BUNDLE.hex().encode(),
        zlib.compress(BUNDLE).hex().encode(),
        json.dumps({"bundle": BUNDLE.decode()}).encode(),
        repr(zlib.compress(BUNDLE)).encode(),
        repr(BUNDLE).encode(),
        BUNDLE[:4000],
        BUNDLE[-500:],
    ],
)
def test_a_bundle_is_found_plain_compressed_and_encoded(leak: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000) + leak)
    assert found_in([tmp_path], content_of(BUNDLE))


def test_what_lies_across_two_parts_of_a_large_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "PART_BYTES", 100)
    for before in range(60, 140):
        (tmp_path / "file").write_bytes(bytes(before) + SECRET + bytes(200))
        assert found_in([tmp_path], [SECRET, b"something else"]) == {SECRET: [str(tmp_path / "file")]}


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(zlib.compress(BUNDLE[::-1]))
    assert found_in([tmp_path], forms_of(SECRET) | content_of(BUNDLE)) == {}
