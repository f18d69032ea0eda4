# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the golden vectors beside this file: `python -m tests.vectors.generate` from the root of the tree.

The format is described in README.md. Run it only when an encoding changes on purpose, and say so in the changelog: bytes
outlive code, and every node of a network must make the same ones.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from consensus import election, work
from consensus.committee import CommitteeMember
from ledger import testing
from ledger.blocks import (
    Keyblock,
    Microblock,
    MicroblockHeader,
    SignedKeyblock,
    SignedMicroblock,
    keyblock_hash,
    microblock_hash,
    microblock_signing_digest,
    pinned_digest,
    sign_keyblock,
)
from ledger.bodies import Body, ChangeKeys, ReportMisbehaviour
from ledger.codec import Wire, encode
from ledger.crypto import chameleon, mountain_range, unique_signature
from ledger.crypto.development_key import DEVELOPMENT_VERIFYING_KEY
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.merkle import merkle_proof, merkle_root
from ledger.genesis import genesis_block, genesis_seed
from ledger.guardianship import recovery_digest
from ledger.labels import permission_digest
from ledger.memory_store import MemoryStore
from ledger.miners import (
    EpochProgress,
    EpochRecord,
    MicroblockFees,
    MinerHistory,
    Offence,
    Seat,
    TermTally,
    inverted,
)
from ledger.patients import envelope_digest, patient_keyblock_hash, patient_keyblock_signing_digest, record_id
from ledger.queries import prove_transaction
from ledger.sharing import fragment_digest
from ledger.state import (
    DELEGATIONS,
    EMERGENCIES,
    ERASURES,
    GRANTS,
    GUARDIANS,
    KEY_GENERATIONS,
    KEY_HOLDERS,
    LABELS,
    PATIENT_GRANTS,
    PATIENTS,
    RECORDS,
    Account,
    Accreditation,
    Authorisation,
    Institution,
    State,
    Supply,
    next_state_digest,
    numbered_key,
)
from ledger.state_tree import ProofStep, StateProof
from ledger.store import Head
from ledger.transactions import SignedTransaction, Transaction, batch_digest, encode_batch, transaction_id
from ledger.transition import Receipt, execute_genesis
from ledger.votes import SignedIndex, _VoteContent, vote_digest
from tests.vectors.contracts import contract_structs, contract_transactions, on_chain
from tests.vectors.examples import (
    CHAIN,
    GENESIS,
    GRANT_ID,
    KEYBLOCK,
    MEMBER,
    NEW_KEY,
    OTHERS,
    PATIENT,
    PERMISSION,
    RAW,
    RECORD,
    SECOND_KEYBLOCK,
    SENDERS,
    STEPS,
    TERMS,
)
from tests.vectors.offchain import offchain, offchain_structs

HERE = Path(__file__).parent

# Proofs are drawn at random, so these were made once, by `Prover.prove_opening` and `Prover.adapt`.
PROOF_BY_OPENING = (
    "2e872a21e83d25435b6ce37c8f7bc9187df8e9b5e7b175ee01f99e5d6bd6d72a2756fbbe9086ff61f397561463230e40ecf915a888a54f71"
    "3c662641c598f141114483e4afcb5e608c003860e84d2c38a3805831c22d77be086d4f53fc3831410c8387fb3d4eb801561a3192cc40c679"
    "abde1b8f88df2a750973a354964b30b51e6589894bf71bc8ac467962cd8bb7064e0ec899fd56ea7ef1548a21a282db6603a936407e4bf24f"
    "797f855289c7e60fc60ecab5c66ef3695ce79fbc5ee97db010ceb4e8077fe90f023d0cf78b722607a6ec94ffbf653367018ed7ba56fb74dc"
    "056f2821821d542b9cbac3ed69b2f81e3f19922cd9bdc369234fbb8c858b342b"
)
PROOF_BY_TRAPDOOR = (
    "2b1b96ffa78df0b9a2aac8114ad1f1c5b8a5a0c99bfca25abc71aa3e8731d27e2beca371c5a50de2ddcebd058ad6f2bf5c0f1ced19b4184b"
    "38801e0f7cee95180bd49f11e98e4d68724c62981b69cc9698510f8b488cb1a4345e20a2cd6633cc25ccb5e9d4f9f92fab9a507474753626"
    "35683bd9a9f89a52620b4bc9c927bcfb0b5167b23968775c796a03948fe40a6fc2105432235860b79d65afa466ede2aa1468b059d638c415"
    "b889102526ab8c97594ad7a4e838719f9b5d323d9e129acc1cb74c8c5ffe17234526e8d22ff6d19495eae317ea6db741f59df2160fac25cb"
    "2809c3ad0052979f1aa39dd09e6a433d32fdd0bc58eb39799ad6e10386ea1d39"
)
DRAW_WEIGHTS = [15, 10, 10, 9, 8, 7, 6, 6, 5, 4, 3, 3, 3]


def plain(value: object) -> object:
    """Return a value as JSON: bytes as {"hex": …}, structs as the arrays that they are on the wire."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        fields = [plain(getattr(value, name)) for name in value.__struct_fields__]
        return fields if tag is None else [tag, *fields]
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    assert value is None or isinstance(value, bool | int | str), f"{value!r} has no form in JSON"
    return value


def microblock(
    height: int, batches: tuple[bytes, ...], keyblock: SignedKeyblock | None = None, reveal: bytes | None = None
) -> Microblock:
    """Return a microblock of an epoch 1 with the commitments of its header right."""
    digest = tagged_hash(Tag.BLOB, b"a digest")
    header = MicroblockHeader(
        height=height,
        epoch=1,
        term=2,
        round=36 + height,
        parent=digest,
        keyblock=CHAIN,
        seed=genesis_seed(CHAIN),
        leader=MEMBER.address,
        timestamp_ms=testing.GENESIS_TIMESTAMP_MS + 123_456,
        batch_count=len(batches),
        batches_root=merkle_root(batches),
        pinned=pinned_digest(keyblock),
        executed_height=5,
        state_digest=digest,
    )
    return Microblock(header, batches, keyblock, reveal)


def keyblock_on(root: Microblock, state_root: bytes) -> Keyblock:
    """Return a keyblock that was mined on an epoch's root."""
    return Keyblock(
        previous=CHAIN,
        microblock=microblock_hash(root.header),
        miner=MEMBER.public_key,
        reveal_key=testing.reveal_keys(0)[1],
        reputation_nano=500_000_000,
        target=b"\0\0\xff" + bytes(29),
        timestamp_ms=testing.GENESIS_TIMESTAMP_MS + 600_000,
        state_root=state_root,
        nonce=bytes(24) + b"\1\2\3\4\5\6\7\10",
    )


def structs() -> dict[str, Wire]:
    """Return an example of each struct."""
    store = MemoryStore(GENESIS)
    testing.commit(store, RAW)
    digest = tagged_hash(Tag.BLOB, b"a digest")
    root = microblock(6, ())
    keyblock = keyblock_on(root, store.state_root())
    signed_keyblock = sign_keyblock(CHAIN, MEMBER, keyblock)
    secret, reveal_key = testing.reveal_keys(0)
    pinning = microblock(7, (digest,), signed_keyblock, unique_signature.sign(secret, digest))
    header = pinning.header
    signed_transactions = [msgspec.msgpack.decode(raw, type=SignedTransaction) for raw in RAW]
    examples: list[Wire] = [
        GENESIS,
        GENESIS.parameters,
        GENESIS.committee[0],
        GENESIS.allocations[0],
        GENESIS.parameters.work,
        GENESIS.parameters.reputation,
        GENESIS.parameters.weight,
        header,
        pinning,
        SignedMicroblock(root, MEMBER.sign(microblock_signing_digest(CHAIN, microblock_hash(root.header)))),
        keyblock,
        signed_keyblock,
        *(signed.transaction.body for signed in signed_transactions),
        signed_transactions[7].transaction,
        signed_transactions[7],
        KEYBLOCK,
        RECORD.microblock,
        RECORD.envelope,
        *_care(store),
        *contract_structs(),
        *offchain_structs(),
        Account(3, 2**62 - 1),
        Institution("Krankenhaus Süd", "AT", MEMBER.public_key, testing.encryption_key(0), 1),
        Accreditation(0),
        Authorisation(allowed=False, changed_height=300),
        Supply(10**15, 0, 70_000, 0),
        Head(7, microblock_hash(header), 43, header.timestamp_ms, digest, 5, 1),
        Receipt(7, 130, "nonce_used"),
        ProofStep(200, digest),
        StateProof((ProofStep(0, digest), ProofStep(9, CHAIN)), (digest, CHAIN)),
        prove_transaction(store, transaction_id(RAW[6])),
        testing.votes_evidence(CHAIN, 1),
        testing.microblocks_evidence(CHAIN, 2),
        _VoteContent(1, 43, digest),
        SignedIndex(3, MEMBER.sign(vote_digest(CHAIN, 1, 43, digest))),
        MinerHistory(25, 130, 4, 5, 7, 400, 24_000, is_honest=False, external_nano=250_000_000),
        Offence(9, 1, 43, testing.key(5).address, None),
        TermTally(2, 40, 800),
        MicroblockFees(1, MEMBER.address, 3_000),
        Seat(MEMBER.public_key, 500_000_000),
        EpochRecord(
            keyblock=keyblock_hash(keyblock),
            root_height=7,
            root_hash=microblock_hash(header),
            root_round=59,
            miner=MEMBER.public_key,
            reveal_key=reveal_key,
            reputation_nano=500_000_000,
            fee_start=tagged_hash(Tag.FEE_START, signed_keyblock.signature),
            target=keyblock.target,
            timestamp_ms=keyblock.timestamp_ms,
            seats=(Seat(MEMBER.public_key, 500_000_000), Seat(testing.key(1).public_key, 1)),
        ),
        EpochProgress(1, digest, 1, 60, MEMBER.address, 1, 1_000, 1, (testing.GENESIS_TIMESTAMP_MS, 2**41)),
    ]
    return {type(value).__name__: value for value in examples}


def _care(store: MemoryStore) -> list[Wire]:
    """Return the state entries of what patients decide, as the example microblock leaves them, and their parts."""
    state, address = State(store), PATIENT.address
    place = numbered_key(address, 0)
    emergency = state.get(EMERGENCIES, place)
    change = STEPS[-1][1]
    assert emergency is not None
    assert isinstance(change, ChangeKeys)
    found: list[Wire | None] = [
        TERMS,
        PERMISSION,
        change.approvals[0],
        emergency,
        emergency.approvals[0],
        state.get(PATIENTS, address),
        state.get(KEY_GENERATIONS, place),
        state.get(KEY_HOLDERS, NEW_KEY.address),
        state.get(RECORDS, place),
        state.get(LABELS, numbered_key(address, 0, 0)),
        state.get(ERASURES, place + OTHERS[2].address),
        state.get(GUARDIANS, address),
        state.get(DELEGATIONS, address + testing.key(7).address),
        state.get(GRANTS, GRANT_ID),
        state.get(PATIENT_GRANTS, place),
    ]
    assert None not in found
    return [item for item in found if item is not None]


def encodings() -> list[dict[str, Any]]:
    """Return name, value and bytes of each struct."""
    return [{"name": name, "value": plain(v), "encoding": encode(v).hex()} for name, v in structs().items()]


def transactions() -> list[dict[str, Any]]:
    """Return each kind of transaction with its secret key, signing digest, signature, bytes and identifier."""
    vectors: dict[str, dict[str, Any]] = {}
    examples = [(CHAIN, secret, raw) for secret, raw in zip(SENDERS, RAW, strict=True)]
    for chain, secret, raw in (*examples, *contract_transactions()):
        signed = msgspec.msgpack.decode(raw, type=SignedTransaction)
        content: Transaction = signed.transaction
        body: Body = content.body
        name = type(body.evidence if isinstance(body, ReportMisbehaviour) else body).__name__
        vectors.setdefault(
            name,
            {
                "name": name,
                "chain_id": chain.hex(),
                "secret_key": secret.secret.hex(),
                "sender_address": secret.address.hex(),
                "value": plain(signed),
                "content": encode(content).hex(),
                "signing_digest": tagged_hash(Tag.TRANSACTION_SIGNATURE, chain, encode(content)).hex(),
                "signature": signed.signature.hex(),
                "encoding": raw.hex(),
                "transaction_id": transaction_id(raw).hex(),
            },
        )
    return list(vectors.values())


def identifiers() -> list[dict[str, Any]]:
    """Return what is hashed for each identifier, and the result."""
    examples = structs()
    ids = [transaction_id(raw) for raw in RAW]
    header = examples["MicroblockHeader"]
    keyblock = examples["Keyblock"]
    assert isinstance(header, MicroblockHeader)
    assert isinstance(keyblock, Keyblock)
    signed_keyblock = examples["SignedKeyblock"]
    assert isinstance(signed_keyblock, SignedKeyblock)
    vote = _VoteContent(1, 43, CHAIN)
    execution = execute_genesis(GENESIS)
    genesis_header = genesis_block(GENESIS, execution.state_digest).header
    changes = ((b"a" + MEMBER.address, encode(Account(1, 2))), (b"s", None))
    rows: list[tuple[str, Tag, list[bytes], bytes]] = [
        ("address", Tag.ADDRESS, [MEMBER.public_key], tagged_hash(Tag.ADDRESS, MEMBER.public_key)),
        ("chain id", Tag.GENESIS, [encode(GENESIS)], CHAIN),
        ("genesis microblock", Tag.MICROBLOCK, [encode(genesis_header)], microblock_hash(genesis_header)),
        ("microblock", Tag.MICROBLOCK, [encode(header)], microblock_hash(header)),
        (
            "microblock signature",
            Tag.MICROBLOCK_SIGNATURE,
            [CHAIN, microblock_hash(header)],
            microblock_signing_digest(CHAIN, microblock_hash(header)),
        ),
        ("keyblock", Tag.KEYBLOCK, [encode(keyblock)], keyblock_hash(keyblock)),
        ("pinned keyblock", Tag.PINNED, [encode(signed_keyblock)], pinned_digest(signed_keyblock)),
        ("seed of the founding epoch", Tag.ELECTION_SEED, [CHAIN], genesis_seed(CHAIN)),
        ("vote", Tag.VOTE, [CHAIN, encode(vote)], vote_digest(CHAIN, vote.epoch, vote.round, vote.block_hash)),
        ("transaction", Tag.TRANSACTION, [RAW[0]], ids[0]),
        ("batch", Tag.BATCH, [len(ids).to_bytes(8, "big"), merkle_root(ids)], batch_digest(ids)),
        ("patient keyblock", Tag.PATIENT_KEYBLOCK, [encode(KEYBLOCK)], patient_keyblock_hash(KEYBLOCK)),
        (
            "patient keyblock signature",
            Tag.PATIENT_KEYBLOCK_SIGNATURE,
            [CHAIN, encode(KEYBLOCK)],
            patient_keyblock_signing_digest(CHAIN, KEYBLOCK),
        ),
        ("record", Tag.PATIENT_MICROBLOCK, [encode(RECORD.microblock)], record_id(RECORD.microblock)),
        ("envelope", Tag.RECORD_ENVELOPE, [encode(RECORD.envelope)], envelope_digest(RECORD.envelope)),
        ("grant", Tag.GRANT, [encode(TERMS)], GRANT_ID),
        ("key fragment", Tag.KEY_FRAGMENT, [b"a key fragment"], fragment_digest(b"a key fragment")),
        (
            "label permission",
            Tag.LABEL_PERMISSION,
            [CHAIN, encode(PERMISSION)],
            permission_digest(CHAIN, PERMISSION),
        ),
        (
            "recovery",
            Tag.RECOVERY,
            [CHAIN, patient_keyblock_hash(SECOND_KEYBLOCK)],
            recovery_digest(CHAIN, patient_keyblock_hash(SECOND_KEYBLOCK)),
        ),
        ("state changes", Tag.STATE_CHANGES, [CHAIN, encode(changes)], next_state_digest(CHAIN, changes)),
    ]
    return [
        {"name": name, "tag": tag.value, "parts": [part.hex() for part in parts], "digest": digest.hex()}
        for name, tag, parts, digest in rows
    ]


def trees() -> list[dict[str, Any]]:
    """Return Merkle roots with a proof, batches, and state roots with proofs of presence and absence."""
    vectors: list[dict[str, Any]] = []
    for count in (0, 1, 2, 3, 5, 8, 13):
        items = [bytes([number]) * 3 for number in range(count)]
        proofs = [[node.hex() for node in merkle_proof(items, index)] for index in range(count)]
        root = merkle_root(items).hex()
        vectors.append({"name": "merkle", "items": [item.hex() for item in items], "root": root, "proofs": proofs})
    for count in (0, 1, 2, 3, 7, 8, 13):
        items = [bytes([number]) * 32 for number in range(count)]
        vectors.append(
            {
                "name": "mountain range",
                "items": [item.hex() for item in items],
                "peaks": [peak.hex() for peak in mountain_range.peaks_of(items)],
                "proofs": [[node.hex() for node in mountain_range.prove(items, place)] for place in range(count)],
                "extensions": [
                    [node.hex() for node in mountain_range.prove_extension(items, earlier)]
                    for earlier in range(count + 1)
                ],
            }
        )
    ids = [transaction_id(raw) for raw in RAW]
    batch = encode_batch(RAW).hex()
    vectors.append(
        {
            "name": "batch",
            "transaction_ids": [i.hex() for i in ids],
            "encoding": batch,
            "digest": batch_digest(ids).hex(),
        }
    )
    store = MemoryStore(GENESIS)
    for name in ("genesis", "one block"):
        keys = (
            b"a" + MEMBER.address,
            b"a" + testing.key(99).address,
            b"s",
            b"p" + PATIENT.address,
            b"G" + GRANT_ID,
            b"D" + OTHERS[1].address + GRANT_ID,
            b"D" + OTHERS[2].address + GRANT_ID,
            b"l" + numbered_key(PATIENT.address, 0, 0),
            b"l" + numbered_key(PATIENT.address, 0, 1),
            b"g",
            b"m" + MEMBER.public_key,
            b"n" + MEMBER.public_key + inverted(0),
            b"o" + testing.key(1).public_key,
            b"o" + testing.key(3).public_key,
        )
        entries = [(key.hex(), value.hex()) for key, value in store.scan_state(b"", b"", 10_000)]
        vectors.append(
            {
                "name": "state",
                "of": name,
                "entries": entries,
                "root": store.state_root().hex(),
                "running_digest": store.head().state_digest.hex(),
                "block_hash": store.head().block_hash.hex(),
                "proofs": [{"key": key.hex(), "encoding": encode(store.state_proof(key)).hex()} for key in keys],
            }
        )
        if name == "genesis":
            testing.commit(store, RAW)
    return vectors


def keys() -> list[dict[str, Any]]:
    """Return key pairs, addresses, signatures and chameleon hashes."""
    vectors = []
    for number in (0, 1, 20):
        key = testing.key(number)
        digest = tagged_hash(Tag.VOTE, bytes([number]))
        trapdoor, public = testing.chameleon_trapdoor(number)
        opening = chameleon.draw_opening(digest)
        vectors.append(
            {
                "name": f"key {number}",
                "secret_key": key.secret.hex(),
                "public_key": key.public_key.hex(),
                "address": key.address.hex(),
                "digest": digest.hex(),
                "signature": key.sign(digest).hex(),
                "chameleon_secret": trapdoor.hex(),
                "chameleon_public": public.hex(),
                "chameleon_opening": opening.hex(),
                "chameleon_hash_of_digest": chameleon.hash_message(digest, opening).hex(),
            }
        )
    return vectors


def proofs() -> list[dict[str, Any]]:
    """Return a proof of each branch of the chameleon hash with its statement."""
    _, public = testing.chameleon_trapdoor(20)
    original, label = tagged_hash(Tag.VOTE, bytes([20])), tagged_hash(Tag.VOTE, b"label")
    hashed = chameleon.hash_message(original, chameleon.draw_opening(original))
    return [
        {
            "name": name,
            "verifying_key": DEVELOPMENT_VERIFYING_KEY.hex(),
            "chameleon_public": public.hex(),
            "chameleon_hash": hashed.hex(),
            "digest": digest.hex(),
            "proof": proof,
        }
        for name, digest, proof in (("opening", original, PROOF_BY_OPENING), ("trapdoor", label, PROOF_BY_TRAPDOOR))
    ]


def keyblocks() -> list[dict[str, Any]]:
    """Return solved keyblocks with all that their hash, signature and reveal decide."""
    unsolved = structs()["Keyblock"]
    assert isinstance(unsolved, Keyblock)
    vectors = []
    for number, bits in enumerate((0, 4, 12)):
        target = work.encode_target(2 ** (256 - bits) - 1)
        miner, (secret, reveal_key) = testing.key(number), testing.reveal_keys(number)
        template = msgspec.structs.replace(unsolved, miner=miner.public_key, reveal_key=reveal_key, target=target)
        keyblock = work.search(template, number, 2**20)
        assert keyblock is not None, "a few thousand hashes are enough"
        signed, previous_seed = sign_keyblock(CHAIN, miner, keyblock), genesis_seed(CHAIN)
        reveal = election.reveal(secret, previous_seed, keyblock_hash(keyblock))
        seed = election.next_seed(previous_seed, keyblock_hash(keyblock), reveal)
        schedule = election.Schedule(seed, [CommitteeMember(b"", b"", weight) for weight in DRAW_WEIGHTS])
        vectors.append(
            {
                "keyblock": encode(keyblock).hex(),
                "keyblock_hash": keyblock_hash(keyblock).hex(),
                "puzzle_hash": work.puzzle_hash(keyblock).hex(),
                "target": target.hex(),
                "work": str(work.work_of(int.from_bytes(target, "big"))),
                "signature": signed.signature.hex(),
                "fee_start": tagged_hash(Tag.FEE_START, signed.signature).hex(),
                "previous_seed": previous_seed.hex(),
                "reveal_message": election.reveal_message(previous_seed, keyblock_hash(keyblock)).hex(),
                "reveal": reveal.hex(),
                "seed": seed.hex(),
                "fallback_seed": election.next_seed(previous_seed, keyblock_hash(keyblock), None).hex(),
                "weights": DRAW_WEIGHTS,
                "drawn": [schedule.drawn(term) for term in range(24)],
            }
        )
    return vectors


def files() -> dict[str, str]:
    """Return name and text of each file."""
    content = {
        "ledger-encodings": encodings(),
        "ledger-transactions": transactions(),
        "ledger-identifiers": identifiers(),
        "ledger-trees": trees(),
        "ledger-keys": keys(),
        "ledger-proofs": proofs(),
        "consensus-keyblocks": keyblocks(),
        "offchain": [*offchain(), on_chain()],
    }
    return {
        f"{name}.json": json.dumps(vectors, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        for name, vectors in content.items()
    }


def main() -> int:
    """Write all files."""
    for name, text in files().items():
        (HERE / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
