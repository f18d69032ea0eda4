# SPDX-License-Identifier: GPL-3.0-or-later
"""A deterministic kit for tests, benchmarks and the simulator: keys, a genesis, transactions, blocks.

Nothing here is for a real network: the keys are derived from small numbers that everyone knows.
"""

from collections.abc import Sequence
from functools import lru_cache

import coincurve
import msgspec
from coincurve._libsecp256k1 import ffi
from coincurve.ecdsa import der_to_cdata, serialize_compact

from ledger.acts import BlockContext
from ledger.blocks import (
    Keyblock,
    Microblock,
    MicroblockHeader,
    SignedKeyblock,
    SignedMicroblock,
    keyblock_hash,
    microblock_hash,
    microblock_signing_digest,
)
from ledger.bodies import (
    AuthoriseAuthor,
    Body,
    CommitRecord,
    RegisterInstitution,
    RegisterPatient,
    ReportMisbehaviour,
    Transfer,
)
from ledger.chain import Chain
from ledger.codec import encode
from ledger.crypto import chameleon, unique_signature
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.hashing import ZERO_DIGEST, Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.crypto.merkle import merkle_root
from ledger.errors import InvalidInput
from ledger.evidence import (
    ConflictingMicroblocks,
    ConflictingVotes,
    Evidence,
    conflicting_microblocks,
    conflicting_votes,
)
from ledger.genesis import Allocation, Genesis, Member, chain_id, genesis_block, genesis_seed
from ledger.offchain import ContractTerms, InvalidRequest, MachineRegistry, PayableKeys, Place, PreState, Replay
from ledger.patients import (
    PatientKeyblock,
    PatientMicroblock,
    RecordEnvelope,
    envelope_digest,
    patient_keyblock_hash,
    patient_keyblock_signing_digest,
    record_id,
)
from ledger.rules import REPUTATION_UNIT, ContractRules, Parameters, ReputationRules, WeightRules, WorkRules
from ledger.state import State
from ledger.store import BlockUpdate, Head, Store
from ledger.transactions import CheckedTransaction, batch_digest, check_transaction, encode_batch, sign_transaction
from ledger.transition import apply_transactions, conclude
from ledger.votes import vote_digest

GENESIS_TIMESTAMP_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""
BALANCE_MICROCREDIT = 10**12
"""Opening balance of every account of the test genesis: a million credits."""
FEE_MICROCREDIT = 1_000
"""Fee of a test transaction, above the minimum."""
EXPIRY_HEIGHT = 100
"""Expiry of a test transaction; within the bound from height 1 on."""

PARAMETERS = Parameters(
    minimum_fee_microcredit=100,
    maximum_expiry_microblocks=1_000,
    term_microblocks=20,
    block_batches=64,
    timestamp_drift_ms=2_000,
    committee_size=64,
    keyblock_reward_microcredit=1_000_000,
    false_evidence_microcredit=5_000,
    emergency_limit_ms=3_600_000,
    work=WorkRules((2**252 - 1).to_bytes(32, "big"), 15_000, 20),
    reputation=ReputationRules(10, 5, 20),
    weight=WeightRules(6 * 10**9, 6),
    contracts=ContractRules(10_000, 4, 3, 6_000, 8),
)
"""Rules of the test network: a keyblock takes 16 hashes, and all founding members sit in the committee."""


class NoMachines:
    """A registry for tests that are about something else: no contract can be opened."""

    def check_terms(self, terms: ContractTerms) -> None:
        """Refuse."""
        raise InvalidInput(f"no machine {terms.machine!r} here")

    def payable_keys(self, terms: ContractTerms, account: bytes) -> PayableKeys | None:
        """Refuse."""
        raise InvalidInput(f"no machine {terms.machine!r} here")

    def check_request(self, chain_id: bytes, contract_id: bytes, request: bytes) -> None:
        """Refuse."""
        raise InvalidRequest("no machines here")

    def replay(self, chain_id: bytes, terms: ContractTerms, place: Place, request: bytes, state: PreState) -> Replay:
        """Refuse."""
        raise InvalidRequest(f"no machine {terms.machine!r} here")


NO_MACHINES = NoMachines()


def _seed(role: str, number: int) -> bytes:
    return tagged_hash(Tag.ADDRESS, f"spchain test kit: {role} {number}".encode())


# Tests name a few hundred keys; a public key costs 40 µs.
@lru_cache(maxsize=4096)
def key(number: int) -> PrivateKey:
    """Return the test key of a number; members and institutions of `genesis` are 0, 1 and so on."""
    return PrivateKey(_seed("key", number))


def encryption_key(number: int) -> bytes:
    """Return a valid public key for re-encryption; its secret is `encryption_secret(number)`."""
    return PrivateKey(encryption_secret(number)).public_key


def encryption_secret(number: int) -> bytes:
    """Return the 32-byte seed of the test re-encryption key of a number."""
    return _seed("encryption", number)


def chameleon_trapdoor(number: int) -> tuple[bytes, bytes]:
    """Return secret and public key of the test chameleon hash of a number."""
    return chameleon.keygen(_seed("chameleon", number))


def reveal_keys(number: int) -> tuple[bytes, bytes]:
    """Return secret and public key of a miner's reveals, by the number of its `key`."""
    return unique_signature.keygen(_seed("reveal", number))


def genesis(
    n_members: int = 4, n_funded: int = 16, network: str = "test", parameters: Parameters = PARAMETERS
) -> Genesis:
    """Return a genesis with members `key(0)` … of reputation 0.5, all accredited.

    Accounts `key(0)` to `key(n_funded - 1)` have credits; members are funded in any case.
    """
    members = tuple(Member(key(number).public_key, REPUTATION_UNIT // 2) for number in range(n_members))
    accredited = tuple(key(number).address for number in range(n_members))
    funded = tuple(Allocation(key(number).address, BALANCE_MICROCREDIT) for number in range(max(n_members, n_funded)))
    return Genesis(network, GENESIS_TIMESTAMP_MS, parameters, members, accredited, funded, DEVELOPMENT_VERIFYING_KEY)


def signed(
    chain: bytes,
    sender: PrivateKey,
    body: Body,
    nonce: int = 0,
    *,
    fee_microcredit: int = FEE_MICROCREDIT,
    expiry_height: int = EXPIRY_HEIGHT,
) -> bytes:
    """Return a signed transaction with the kit's fee and expiry."""
    return sign_transaction(
        chain, sender, nonce=nonce, fee_microcredit=fee_microcredit, expiry_height=expiry_height, body=body
    )


def transfer(chain: bytes, sender: PrivateKey, recipient: bytes, amount_microcredit: int = 1, nonce: int = 0) -> bytes:
    """Return a signed transfer to a recipient's address."""
    return signed(chain, sender, Transfer(recipient, amount_microcredit), nonce)


def register_institution(chain: bytes, sender: PrivateKey, nonce: int = 0, name: str = "Hospital") -> bytes:
    """Return a signed registration of an accredited sender."""
    return signed(chain, sender, RegisterInstitution(name, "AT", encryption_key(0)), nonce)


def patient_keyblock(patient: PrivateKey, institution: bytes, number: int = 0) -> PatientKeyblock:
    """Return a patient's keyblock; `number` names its re-encryption and chameleon keys."""
    return PatientKeyblock(
        patient=patient.address,
        generation=0,
        previous=ZERO_DIGEST,
        signing_key=patient.public_key,
        reencryption_key=encryption_key(number),
        chameleon_key=chameleon_trapdoor(number)[1],
        institution=institution,
    )


def register_patient(
    chain: bytes,
    institution: PrivateKey,
    patient: PrivateKey,
    nonce: int = 0,
    allowance_microcredit: int = 10**6,
) -> bytes:
    """Return a signed registration with the keyblock `patient_keyblock(patient, institution.address)`."""
    keyblock = patient_keyblock(patient, institution.address)
    consent = patient.sign(patient_keyblock_signing_digest(chain, keyblock))
    return signed(chain, institution, RegisterPatient(keyblock, consent, allowance_microcredit), nonce)


def authorise_author(
    chain: bytes, patient: PrivateKey, institution: bytes, nonce: int = 0, *, allowed: bool = True
) -> bytes:
    """Return a patient's signed authorisation, or its withdrawal."""
    return signed(chain, patient, AuthoriseAuthor(patient.address, institution, allowed), nonce)


def report_misbehaviour(chain: bytes, sender: PrivateKey, evidence: Evidence, nonce: int = 0) -> bytes:
    """Return a signed report."""
    return signed(chain, sender, ReportMisbehaviour(evidence), nonce)


def other_signature(key: PrivateKey, digest: bytes, entropy: bytes) -> bytes:
    """Return a signature that is as valid as `key.sign(digest)` and differs from it: ECDSA has one per nonce, 32 bytes."""
    nonce = (ffi.NULL, ffi.new("char[32]", entropy))
    der = coincurve.PrivateKey(key.secret).sign(digest, hasher=None, custom_nonce=nonce)
    return bytes(serialize_compact(der_to_cdata(der)))


def sign_keyblock_anew(chain: bytes, key: PrivateKey, keyblock: Keyblock, entropy: bytes) -> SignedKeyblock:
    """Return the keyblock with another signature of its miner than `sign_keyblock` makes."""
    digest = tagged_hash(Tag.KEYBLOCK_SIGNATURE, chain, keyblock_hash(keyblock))
    return SignedKeyblock(keyblock, other_signature(key, digest, entropy))


def votes_evidence(chain: bytes, number: int, epoch: int = 0, round_: int = 1) -> ConflictingVotes:
    """Return true evidence that `key(number)` voted for two microblocks in one round."""
    hashes = (tagged_hash(Tag.MICROBLOCK, bytes([fork])) for fork in range(2))
    votes = [(name, key(number).sign(vote_digest(chain, epoch, round_, name))) for name in hashes]
    return conflicting_votes(key(number).public_key, epoch, round_, votes[0], votes[1])


def microblocks_evidence(chain: bytes, number: int, epoch: int = 0, round_: int = 1) -> ConflictingMicroblocks:
    """Return true evidence that `key(number)` proposed two microblocks in one round."""
    leader = key(number)
    header = genesis_block(genesis(), ZERO_DIGEST).header
    headers = [
        msgspec.structs.replace(header, epoch=epoch, round=round_, leader=leader.address, timestamp_ms=fork)
        for fork in range(2)
    ]
    proposals = [(header, leader.sign(microblock_signing_digest(chain, microblock_hash(header)))) for header in headers]
    return conflicting_microblocks(leader.public_key, proposals[0], proposals[1])


def record_body(
    author: bytes,
    keyblock: PatientKeyblock,
    sequence: int = 0,
    previous: bytes | None = None,
    content: int = 0,
) -> CommitRecord:
    """Return a record as a link of a patient's chain; `previous` is needed from the second record on."""
    envelope = RecordEnvelope(
        blob_id=tagged_hash(Tag.BLOB, content.to_bytes(8, "big")),
        capsule_digest=tagged_hash(Tag.CAPSULE, content.to_bytes(8, "big")),
        blob_bytes=4096 + content,
        author=author,
        status="final",
        label="",
        replaced_by=b"",
    )
    opening = chameleon.draw_opening(_seed("opening", content))
    identifier = patient_keyblock_hash(keyblock)
    microblock = PatientMicroblock(
        patient=keyblock.patient,
        patient_keyblock=identifier,
        previous=identifier if previous is None else previous,
        sequence=sequence,
        author=author,
        chameleon_hash=chameleon.hash_message(envelope_digest(envelope), opening),
    )
    return CommitRecord(microblock, envelope, opening)


def commit_record(chain: bytes, author: PrivateKey, patient: PrivateKey, registrar: bytes, nonce: int = 0) -> bytes:
    """Return a signed first record of a patient whom the institution `registrar` has registered."""
    return signed(chain, author, record_body(author.address, patient_keyblock(patient, registrar)), nonce)


def record_chain(author: bytes, keyblock: PatientKeyblock, count: int) -> tuple[CommitRecord, ...]:
    """Return the first `count` records of a patient, each linked to the one before."""
    bodies: list[CommitRecord] = []
    previous = None
    for sequence in range(count):
        bodies.append(record_body(author, keyblock, sequence, previous, content=sequence))
        previous = record_id(bodies[-1].microblock)
    return tuple(bodies)


def rules_of(chain: bytes) -> Chain:
    """Return what checks without state need of a chain of the kit, by its identifier."""
    return Chain(chain, DEVELOPMENT_VERIFYING_KEY)


def check(chain: bytes, raws: Sequence[bytes]) -> tuple[CheckedTransaction, ...]:
    """Return transactions after their checks of shape and signature."""
    return tuple(check_transaction(raw, rules_of(chain)) for raw in raws)


def batch(chain: bytes, raws: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return digest and encoding of a batch of signed transactions."""
    return batch_digest([checked.id for checked in check(chain, raws)]), encode_batch(raws)


def next_update(
    store: Store, batches: Sequence[Sequence[bytes]], machines: MachineRegistry = NO_MACHINES
) -> BlockUpdate:
    """Execute batches as the block after a store's head, led by `key(0)`; the caller stores and commits.

    For tests of the ledger: nobody accounts for terms, fees and keyblocks, and the progress of the epoch stays as it is.
    """
    head, chain = store.head(), chain_id(store.genesis)
    height, timestamp_ms = head.height + 1, head.timestamp_ms + 1_000
    digests = tuple(batch(chain, raws)[0] for raws in batches)
    transactions = [checked for raws in batches for checked in check(chain, raws)]
    context = BlockContext(height, timestamp_ms, store.genesis.parameters, chain, epoch=0, machines=machines)
    state = State(store)
    applied = apply_transactions(state, context, transactions)
    execution = conclude(state, head.state_digest, applied.receipts)
    header = MicroblockHeader(
        height=height,
        epoch=0,
        term=0,
        round=head.round + 1,
        parent=head.block_hash,
        keyblock=chain,
        seed=genesis_seed(chain),
        leader=key(0).address,
        timestamp_ms=timestamp_ms,
        batch_count=len(digests),
        batches_root=merkle_root(digests),
        pinned=ZERO_DIGEST,
        executed_height=head.height,
        state_digest=head.state_digest,
    )
    block_hash = microblock_hash(header)
    signature = key(0).sign(microblock_signing_digest(chain, block_hash))
    kinds = {checked.id: checked.transaction.body for checked in transactions}
    effective = [identifier for identifier, receipt in execution.receipts if not receipt.reason]
    return BlockUpdate(
        head=msgspec.structs.replace(
            head,
            height=height,
            block_hash=block_hash,
            round=header.round,
            timestamp_ms=timestamp_ms,
            state_digest=execution.state_digest,
            transaction_count=head.transaction_count + len(effective),
            record_count=head.record_count + sum(isinstance(kinds[item], CommitRecord) for item in effective),
        ),
        microblock=encode(SignedMicroblock(Microblock(header, digests), signature)),
        certificate=tagged_hash(Tag.VOTE, block_hash),
        batches=digests,
        changes=execution.changes,
        receipts=execution.receipts,
    )


def commit(store: Store, *batches: Sequence[bytes], machines: MachineRegistry = NO_MACHINES) -> Head:
    """Store batches, execute them as the next block, commit it and return the new head."""
    chain = chain_id(store.genesis)
    store.put_batches([batch(chain, raws) for raws in batches])
    store.commit(next_update(store, batches, machines))
    return store.head()
