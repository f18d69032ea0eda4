# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit itself: what it builds is valid, so that a refusal in a test is the test's subject."""

import pytest

from ledger import testing
from ledger.codec import encode
from ledger.crypto import chameleon, unique_signature
from ledger.crypto.keys import address_of, is_public_key
from ledger.evidence import Guilt, check_evidence
from ledger.genesis import chain_id, decode_genesis
from ledger.patients import patient_keyblock_hash, record_id
from ledger.state import State
from ledger.store import Store


@pytest.mark.parametrize(("members", "funded"), [(1, 0), (4, 16), (13, 5)])
def test_genesis_is_valid_and_funds_every_member(members: int, funded: int) -> None:
    genesis = testing.genesis(members, funded)
    assert decode_genesis(encode(genesis)) == genesis
    accounts = {allocation.account for allocation in genesis.allocations}
    assert {address_of(member.public_key) for member in genesis.committee} <= accounts
    assert len(accounts) == max(members, funded)


def test_keys_are_distinct_and_the_same_every_time() -> None:
    assert testing.key(7).secret == testing.key(7).secret
    assert len({testing.key(number).address for number in range(100)}) == 100
    assert is_public_key(testing.encryption_key(3))
    secret, public = testing.chameleon_trapdoor(3)
    assert chameleon.public_key(secret) == public
    reveal_secret, reveal_key = testing.reveal_keys(3)
    assert unique_signature.verify(reveal_key, b"m", unique_signature.sign(reveal_secret, b"m"))
    assert len({testing.reveal_keys(number) for number in range(10)}) == 10


def test_evidence_is_true_and_the_same_every_time() -> None:
    chain = chain_id(testing.genesis())
    for make in (testing.votes_evidence, testing.microblocks_evidence):
        assert check_evidence(chain, make(chain, 7, 2, 9)) == Guilt(testing.key(7).public_key, 2, 9)
        assert make(chain, 7, 2, 9) == make(chain, 7, 2, 9)


def test_one_of_each_kind_takes_effect(store: Store) -> None:
    chain, hospital, patient, other = chain_id(store.genesis), testing.key(0), testing.key(20), testing.key(1)
    first = [
        testing.register_institution(chain, hospital, 0),
        testing.register_patient(chain, hospital, patient, 1),
        testing.commit_record(chain, hospital, patient, hospital.address, 2),
    ]
    evidence = testing.votes_evidence(chain, 3)
    second = [
        testing.register_institution(chain, other, 0, name="Other"),
        testing.authorise_author(chain, patient, other.address),
        testing.transfer(chain, testing.key(5), patient.address, 7),
        testing.report_misbehaviour(chain, testing.key(6), evidence),
    ]
    progress = State(store).progress()
    head = testing.commit(store, first, second)
    assert (head.height, head.round, head.transaction_count, head.record_count) == (1, 1, 7, 1)
    assert State(store).progress() == progress
    assert head.timestamp_ms == testing.GENESIS_TIMESTAMP_MS + 1000
    empty = testing.commit(store)
    assert (empty.height, empty.state_digest) == (2, head.state_digest)


def test_a_chain_of_records_is_linked() -> None:
    keyblock = testing.patient_keyblock(testing.key(20), testing.key(0).address)
    links = [body.microblock for body in testing.record_chain(testing.key(0).address, keyblock, 3)]
    assert links[0].previous == patient_keyblock_hash(keyblock)
    assert [link.previous for link in links[1:]] == [record_id(link) for link in links[:-1]]
    assert [link.sequence for link in links] == [0, 1, 2]
    assert {link.patient for link in links} == {testing.key(20).address}
