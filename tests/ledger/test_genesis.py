# SPDX-License-Identifier: GPL-3.0-or-later
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import testing
from ledger.blocks import is_well_formed
from ledger.chain import chain_of
from ledger.codec import encode
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.hashing import ZERO_DIGEST
from ledger.errors import InvalidInput
from ledger.genesis import Allocation, Genesis, Member, chain_id, decode_genesis, genesis_block, genesis_seed
from ledger.rules import PROFILES, Parameters, ReputationRules, WeightRules, WorkRules, check_parameters
from tests.ledger.crypto.proof_kit import OTHER_KEY

GENESIS = testing.genesis()


def changed(**fields: object) -> Genesis:
    return msgspec.structs.replace(GENESIS, **fields)


def parameters(**fields: object) -> Parameters:
    return msgspec.structs.replace(GENESIS.parameters, **fields)


def test_genesis_comes_back_as_it_was_written() -> None:
    assert decode_genesis(encode(GENESIS)) == GENESIS


MEMBER, LIMIT = GENESIS.committee[0], GENESIS.parameters.work.limit
WRONG = {
    "member twice": (changed(committee=(MEMBER, MEMBER)), "listed twice"),
    "member's key": (changed(committee=(Member(b"\x02" + b"\xff" * 32, 1),)), "not a compressed secp256k1 point"),
    "no member": (changed(committee=()), "length >= 1"),
    "65 members": (changed(committee=(MEMBER,) * 65), "length <= 64"),
    "no reputation": (changed(committee=(Member(MEMBER.public_key, 0),)), ">= 1"),
    "reputation above one": (changed(committee=(Member(MEMBER.public_key, 10**9 + 1),)), "<= 1000000000"),
    "account twice": (
        changed(allocations=(Allocation(bytes(20), 1), Allocation(bytes(20), 2))),
        "two opening balances",
    ),
    "accredited twice": (changed(accredited=(bytes(20), bytes(20))), "accredited twice"),
    "too many credits": (
        changed(allocations=(Allocation(bytes(20), 2**61), Allocation(b"\1" * 20, 2**61))),
        "opening balances reach 2\\^62",
    ),
    "name": (changed(network="Test Net"), "matching regex"),
    "name with a line": (changed(network="test\n"), "matching regex"),
    "empty name": (changed(network=""), "genesis|Genesis"),
    "expiry": (changed(parameters=parameters(maximum_expiry_microblocks=0)), ">= 1"),
    "term": (changed(parameters=parameters(term_microblocks=1)), ">= 2"),
    "batches": (changed(parameters=parameters(block_batches=257)), "<= 256"),
    "no committee": (changed(parameters=parameters(committee_size=0)), ">= 1"),
    "committee": (changed(parameters=parameters(committee_size=65)), "<= 64"),
    "reward": (changed(parameters=parameters(keyblock_reward_microcredit=2**32 + 1)), "<= 4294967296"),
    "penalty": (changed(parameters=parameters(false_evidence_microcredit=-1)), ">= 0"),
    "target": (changed(parameters=parameters(work=WorkRules(bytes(32), 1, 2))), "limit of the target is 0"),
    "long target": (changed(parameters=parameters(work=WorkRules(bytes(33), 1, 2))), "length <= 32"),
    "interval": (changed(parameters=parameters(work=WorkRules(LIMIT, 0, 2))), ">= 1"),
    "window": (changed(parameters=parameters(work=WorkRules(LIMIT, 1, 1))), ">= 2"),
    "flatness": (changed(parameters=parameters(reputation=ReputationRules(0, 0, 1))), ">= 1"),
    "newcomers count nothing": (
        changed(parameters=parameters(reputation=ReputationRules(2**32, 8, 1))),
        "f\\(0\\) is below 10⁻⁹ and counts as 0.* flatness of at least 9,",
    ),
    "chunk": (changed(parameters=parameters(reputation=ReputationRules(0, 1, 0))), ">= 1"),
    "no verifying key": (changed(chameleon_verifying_key=b""), "length >= 704"),
    "long verifying key": (changed(chameleon_verifying_key=OTHER_KEY + b"x"), "length <= 704"),
    "verifying key of zeros": (changed(chameleon_verifying_key=bytes(704)), "point of its curve"),
    "unfinished verifying key": (
        changed(chameleon_verifying_key=OTHER_KEY[:320] + OTHER_KEY[192:320] + OTHER_KEY[448:]),
        "anybody can forge",
    ),
    "weight": (changed(parameters=parameters(weight=WeightRules(0, 1))), ">= 1"),
    "cap": (changed(parameters=parameters(weight=WeightRules(1, 65))), "<= 64"),
}


@pytest.mark.parametrize(("genesis", "text"), WRONG.values(), ids=WRONG.keys())
def test_genesis_that_cannot_be_is_refused(genesis: Genesis, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        decode_genesis(encode(genesis))


def test_most_credits_are_accepted() -> None:
    decode_genesis(encode(changed(allocations=(Allocation(bytes(20), 2**62 - 1),))))


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_rules_whose_newcomers_have_no_reputation_are_refused_and_the_remedy_is_right(midpoint: int, step: int) -> None:
    """f(0) = λ / (2 (λ + a)) must reach 10⁻⁹; the flatness that the refusal names is the smallest that does."""

    def accepted(flatness: int) -> bool:
        try:
            check_parameters(parameters(reputation=ReputationRules(midpoint, flatness, 1)))
        except InvalidInput as refusal:
            assert f"at least {least}," in str(refusal)  # noqa: PT017 -- there may be none
            return False
        return True

    least = next(f for f in range(1, 12) if Fraction(f, 2 * (f + midpoint)) >= Fraction(1, 10**9))
    assert accepted(step) == (step >= least)


@given(st.sampled_from(Genesis.__struct_fields__))
def test_chain_identifier_covers_every_field(field: str) -> None:
    others: dict[str, object] = {
        "network": "other",
        "timestamp_ms": 1,
        "parameters": parameters(minimum_fee_microcredit=1),
        "committee": GENESIS.committee[:1],
        "accredited": (),
        "allocations": (),
        "chameleon_verifying_key": OTHER_KEY,
    }
    assert chain_id(changed(**{field: others[field]})) != chain_id(GENESIS)


def test_genesis_block_is_empty_at_height_zero_and_names_the_chain() -> None:
    block = genesis_block(GENESIS, b"d" * 32)
    assert is_well_formed(block)
    header = block.header
    assert (header.height, header.parent, header.keyblock) == (0, chain_id(GENESIS), chain_id(GENESIS))
    assert (header.timestamp_ms, header.state_digest) == (GENESIS.timestamp_ms, b"d" * 32)
    assert (header.seed, header.pinned) == (genesis_seed(chain_id(GENESIS)), ZERO_DIGEST)


def test_seed_of_the_founding_epoch_is_of_one_chain() -> None:
    assert genesis_seed(chain_id(GENESIS)) != genesis_seed(chain_id(changed(network="other")))


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_makes_a_genesis(name: str) -> None:
    decode_genesis(encode(changed(parameters=PROFILES[name], chameleon_verifying_key=OTHER_KEY)))


@pytest.mark.parametrize("name", PROFILES)
def test_the_development_key_serves_the_profile_devnet_only(name: str) -> None:
    raw = encode(changed(parameters=PROFILES[name], chameleon_verifying_key=DEVELOPMENT_VERIFYING_KEY))
    if name == "devnet":
        decode_genesis(raw)
    else:
        with pytest.raises(InvalidInput, match="everybody can forge proofs; hold a ceremony"):
            decode_genesis(raw)


@pytest.mark.parametrize("interval_ms", [15_001, 60_000, 599_999])
def test_changing_a_profile_does_not_admit_the_development_key(interval_ms: int) -> None:
    """Rules are told by how long they are made to last, not by their name."""
    work = WorkRules(LIMIT, interval_ms, 20)
    with pytest.raises(InvalidInput, match="development key"):
        decode_genesis(encode(changed(parameters=parameters(work=work))))


@given(st.sampled_from(GENESIS.parameters.__struct_fields__))
def test_chain_identifier_covers_every_rule(field: str) -> None:
    value = getattr(GENESIS.parameters, field)
    if isinstance(value, int):
        other: object = value + 1
    else:
        first = value.__struct_fields__[-1]
        other = msgspec.structs.replace(value, **{first: getattr(value, first) + 1})
    assert chain_id(changed(parameters=parameters(**{field: other}))) != chain_id(GENESIS)


def test_checks_without_state_take_identifier_and_verifying_key_from_the_genesis() -> None:
    genesis = testing.genesis()
    assert chain_of(genesis) == testing.rules_of(chain_id(genesis))
    assert chain_of(genesis).verifying_key == genesis.chameleon_verifying_key
