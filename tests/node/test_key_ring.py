# SPDX-License-Identifier: GPL-3.0-or-later
"""A key ring keeps every generation, knows whose it is, and survives its file, whatever the order of changes."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.crypto.reencryption import encrypt
from ledger.errors import InvalidInput
from node.identity import Identity
from node.key_ring import MAX_GENERATIONS, KeyRing
from node.keystore import Cost, read_key, read_public, read_ring, replace_key, write_key
from records.backup import MAX_SECRET_BYTES

PASSPHRASE = b"open sesame"
SEEDS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4, unique=True)


def ring_of(count: int) -> KeyRing:
    return KeyRing([Identity(bytes([number]) * 32, "Maria") for number in range(count, 0, -1)])


@settings(max_examples=20)
@given(SEEDS)
def test_a_ring_is_what_its_secret_gives_back(seeds: list[bytes]) -> None:
    ring = KeyRing([Identity(seed, "x") for seed in seeds])
    again = KeyRing.from_secret(ring.secret, "x")
    assert again.public == ring.public
    assert [identity.seed for identity in again.generations] == seeds
    assert again.newest.seed == seeds[0]


@settings(max_examples=20)
@given(SEEDS)
def test_changes_of_keys_never_change_the_identifier_and_lose_no_key(seeds: list[bytes]) -> None:
    first = Identity(seeds[0])
    ring = KeyRing((first,))
    for seed in seeds[1:]:
        ring = ring.renewed(Identity(seed))
    assert ring.identifier == ring.public.identifier == first.address
    assert ring.public.address == ring.newest.address == Identity(seeds[-1]).address
    assert ring.public.generation == len(seeds) - 1
    for seed in seeds:
        public = Identity(seed).public.reencryption_key
        capsule, ciphertext = encrypt(public, b"old record")
        assert ring.holding(public).reencryption.decrypt(capsule, ciphertext) == b"old record"


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_ring_are_refused(secret: bytes) -> None:
    seeds = {secret[start : start + 32] for start in range(0, len(secret), 32)}
    if secret and len(secret) % 32 == 0 and len(seeds) == len(secret) // 32:
        assert KeyRing.from_secret(secret).secret == secret
    else:
        with pytest.raises(InvalidInput):
            KeyRing.from_secret(secret)


def test_a_key_that_is_not_in_the_ring_is_named() -> None:
    stranger = Identity(b"\x99" * 32).public.reencryption_key
    with pytest.raises(InvalidInput, match=stranger.hex()):
        ring_of(2).holding(stranger)


def test_a_ring_never_shows_its_secrets() -> None:
    ring = ring_of(3)
    assert not any(identity.seed.hex() in repr(ring) for identity in ring.generations)
    assert ring.identifier.hex() in repr(ring)


def test_a_generation_cannot_be_there_twice_and_a_ring_is_bounded() -> None:
    ring = ring_of(1)
    with pytest.raises(InvalidInput, match="twice"):
        ring.renewed(ring.newest)
    with pytest.raises(InvalidInput, match="1 to"):
        KeyRing(())
    with pytest.raises(InvalidInput, match="at most"):
        KeyRing.from_secret(bytes(32 * (MAX_GENERATIONS + 1)))


def test_the_largest_ring_fits_into_a_key_file_and_into_the_guardians_backup(tmp_path: Path) -> None:
    ring = ring_of(MAX_GENERATIONS)
    assert len(ring.secret) <= MAX_SECRET_BYTES
    path = tmp_path / "maria.json"
    write_key(path, ring, PASSPHRASE, Cost.LIGHT)
    assert read_ring(path, PASSPHRASE).public == ring.public == read_public(path)


def test_a_key_file_takes_another_generation_and_the_old_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "maria.json"
    write_key(path, ring_of(1), PASSPHRASE, Cost.LIGHT)
    replace_key(path, ring_of(2), PASSPHRASE)
    assert read_ring(path, PASSPHRASE).secret == ring_of(2).secret
    assert read_key(path, PASSPHRASE).seed == ring_of(2).newest.seed
    assert read_public(path).identifier == ring_of(1).identifier
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_whose_former_keys_were_damaged_or_taken_away_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "maria.json"
    write_key(path, ring_of(3), PASSPHRASE, Cost.LIGHT)
    document = json.loads(path.read_bytes())
    former = document["spchain"]["former"]
    assert not any(identity.seed.hex() in path.read_text() for identity in ring_of(3).generations)
    for wrong, text in (("", "not those of the secret"), (former[:-2], "do not open"), ("zz", "do not open")):
        document["spchain"]["former"] = wrong
        path.write_text(json.dumps(document))
        with pytest.raises(InvalidInput, match=text):
            read_ring(path, PASSPHRASE)


def test_a_key_file_never_loses_a_generation(tmp_path: Path) -> None:
    path = tmp_path / "maria.json"
    write_key(path, ring_of(2), PASSPHRASE, Cost.LIGHT)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="would be lost"):
        replace_key(path, ring_of(1), PASSPHRASE)
    with pytest.raises(InvalidInput, match="wrong passphrase"):
        replace_key(path, ring_of(3), b"another")
    assert path.read_bytes() == before
