# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a grant: what the chain would refuse is refused before any key is split, and what is prepared the chain takes."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import testing
from ledger.bodies import DelegatePowers, GrantAccess
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.errors import InvalidInput
from ledger.sharing import fragment_digest, grant_id
from records.grants import decode_sealed, prepare_grant
from records.placement import draw_proxies
from tests.records.world import GRANTEE, PATIENT, World, encryption

INSTITUTIONS = [tagged_hash(Tag.ADDRESS, bytes([number]))[:20] for number in range(40)]
DRAWER, READER = INSTITUTIONS[0], INSTITUTIONS[1]


def test_what_is_prepared_is_what_the_chain_takes(world: World) -> None:
    prepared = world.prepare(records=(2, 0), purposes=("TREAT", "ETREAT"), emergency_approvals=1)
    terms = prepared.terms
    assert (terms.records, terms.purposes) == ((0, 2), ("ETREAT", "TREAT"))
    assert terms.fragment_digests == tuple(fragment_digest(bytes(fragment)) for fragment in prepared.fragments)
    assert prepared.grant_id == grant_id(terms)
    world.submit(world.patient, GrantAccess(terms))
    assert world.granted(prepared).verifying_key == world.patient.public_key


def test_a_delegate_grants_with_its_own_signature_under_the_fragments(world: World) -> None:
    """The patient has handed it the re-encryption key; the chain names the delegate's key for the fragments."""
    carer = testing.key(31)
    world.submit(
        world.patient, DelegatePowers(world.patient.address, carer.address, ("grant",), world.now_ms() + 60_000)
    )
    prepared = prepare_grant(encryption(PATIENT), carer, world.choice())
    world.submit(carer, GrantAccess(prepared.terms))
    assert world.granted(prepared).verifying_key == carer.public_key
    assert len(world.deliver(prepared)) == 3


def test_no_two_grants_are_the_same(world: World) -> None:
    first, second = world.prepare(), world.prepare()
    assert first.grant_id != second.grant_id
    assert not {bytes(fragment) for fragment in first.fragments} & {bytes(fragment) for fragment in second.fragments}


def test_a_prepared_grant_shows_no_fragment(world: World) -> None:
    prepared = world.prepare()
    assert bytes(prepared.fragments[0])[:40].hex() not in repr(prepared)
    assert "fragments=" not in repr(prepared)


def test_a_sealed_fragment_names_grant_and_proxy_and_keeps_to_its_bound(world: World) -> None:
    prepared = world.prepare()
    raw = prepared.seal(testing.key(2).address, testing.encryption_key(2))
    sealed = decode_sealed(raw)
    assert (sealed.grant_id, sealed.proxy) == (prepared.grant_id, testing.key(2).address)
    assert len(raw) < 650
    fragment = bytes(prepared.fragments[1])
    assert not any(fragment[start : start + 16] in raw for start in range(294))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"records": ()}, "name 1 to 256"),
        ({"records": tuple(range(257))}, "name 1 to 256"),
        ({"records": (1, 1)}, "each record once"),
        ({"records": (-1,)}, "each record once"),
        ({"purposes": ()}, "purposes"),
        ({"purposes": ("TREAT", "TREAT")}, "purposes"),
        ({"purposes": ("CURIOSITY",)}, "purposes"),
        ({"from_ms": 5, "until_ms": 5}, "before it begins"),
        ({"from_ms": -1}, "before it begins"),
        ({"threshold": 1}, "at least 2"),
        ({"threshold": 4}, "at least 2"),
        ({"proxies": tuple(testing.key(number).address for number in (1, 2, 2))}, "one fragment only"),
        ({"proxies": tuple(testing.key(number).address for number in (1, 2, GRANTEE))}, "one fragment only"),
        ({"proxies": tuple(INSTITUTIONS[:17])}, "of 16 at most"),
        ({"emergency_approvals": 4}, "cannot be reached"),
        ({"emergency_approvals": -1}, "cannot be reached"),
        ({"receiving_key": b"\x04" * 33}, "no point of secp256k1"),
    ],
)
def test_choices_that_the_chain_would_refuse_are_refused_at_home(
    world: World, changes: dict[str, object], fault: str
) -> None:
    with pytest.raises(InvalidInput, match=fault):
        world.prepare(**changes)


# ---------------------------------------------------------------- drawing proxies


@settings(max_examples=50)
@given(st.permutations(INSTITUTIONS), st.integers(0, 2**63 - 1), st.integers(1, 16))
def test_the_draw_depends_on_the_set_only_and_leaves_the_grantee_out(
    institutions: list[bytes], number: int, n: int
) -> None:
    drawn = draw_proxies(DRAWER, number, READER, institutions + institutions[:3], n)
    assert drawn == draw_proxies(DRAWER, number, READER, INSTITUTIONS, n)
    assert len(set(drawn)) == n
    assert READER not in drawn


def test_a_grantee_cannot_choose_its_proxies_by_choosing_its_address() -> None:
    others = INSTITUTIONS[2:]
    draws = {draw_proxies(DRAWER, 0, reader, others, 3) for reader in INSTITUTIONS[:2]}
    assert len(draws) == 1


def test_draws_are_spread_over_the_institutions() -> None:
    counts = Counter(proxy for number in range(400) for proxy in draw_proxies(DRAWER, number, READER, INSTITUTIONS, 3))
    assert set(counts) == set(INSTITUTIONS) - {READER}
    assert max(counts.values()) < 3 * 1200 / 39


def test_more_proxies_than_institutions_are_refused() -> None:
    with pytest.raises(InvalidInput, match="ask for fewer"):
        draw_proxies(DRAWER, 0, READER, INSTITUTIONS[:3], 3)
