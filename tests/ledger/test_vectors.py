# SPDX-License-Identifier: GPL-3.0-or-later
"""The golden vectors against the code and against implementations that are not ours."""

import hashlib
import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgpack
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

import ledger
from ledger import testing
from ledger.blocks import Microblock, MicroblockHeader, SignedKeyblock, microblock_hash
from ledger.bodies import Body
from ledger.codec import Wire, decode, encode
from ledger.crypto import chameleon, groth16_pure, mountain_range
from ledger.crypto.chameleon_proof import VerifyingKey, proof_points, public_inputs, verify_proof
from ledger.crypto.keys import PrivateKey, verify
from ledger.crypto.merkle import merkle_proof, merkle_root, verify_merkle_proof
from ledger.evidence import ConflictingMicroblocks, ConflictingVotes, Evidence
from ledger.memory_store import MemoryStore
from ledger.queries import TransactionProof, verify_transaction_proof
from ledger.state_tree import StateProof, verify_state_proof
from ledger.transactions import batch_digest, check_transaction, decode_batch
from tests.vectors import generate
from tests.vectors.examples import CHAIN, GENESIS, RAW

W = TypeVar("W", bound=Wire)
VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads((VECTORS / f"ledger-{name}.json").read_text(encoding="utf-8"))
    return vectors


def unplain(value: object) -> object:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return [unplain(item) for item in value] if isinstance(value, list) else value


def tagged(tag: str, data: bytes) -> bytes:
    prefix = hashlib.sha256(tag.encode("ascii")).digest()
    return hashlib.sha256(prefix + prefix + data).digest()


def wire_structs() -> dict[str, type[Wire]]:
    modules = [importlib.import_module(module.name) for module in pkgutil.walk_packages(ledger.__path__, "ledger.")]
    members = [member for module in modules for member in inspect.getmembers(module, inspect.isclass)]
    return {name: kind for name, kind in members if issubclass(kind, Wire) and kind is not Wire}


def point_of(public_key: bytes) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public_key)


def independent_verify(public_key: bytes, digest: bytes, signature: bytes) -> None:
    der = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    point_of(public_key).verify(der, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


@pytest.mark.parametrize("name", sorted(generate.files()))
def test_generating_again_gives_the_same_file(name: str) -> None:
    assert (VECTORS / name).read_text(encoding="utf-8") == generate.files()[name], (
        "run python -m tests.vectors.generate"
    )


def test_generator_writes_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert generate.main() == 0
    # `tests.vectors.evidence` writes the evidence files, which take a chain with keyblocks.
    written = {path.name for path in VECTORS.glob("*.json")} - {"evidence.json"}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_every_wire_struct_has_a_vector() -> None:
    assert {vector["name"] for vector in load("encodings")} == set(wire_structs())


@pytest.mark.parametrize("vector", load("encodings"), ids=lambda vector: str(vector["name"]))
def test_encoding_is_what_an_independent_messagepack_makes_and_decodes_to_the_same_value(
    vector: dict[str, Any],
) -> None:
    raw = bytes.fromhex(vector["encoding"])
    assert msgpack.packb(unplain(vector["value"]), use_bin_type=True) == raw
    value = decode(wire_structs()[vector["name"]], raw, len(raw))
    assert encode(value) == raw
    assert generate.plain(value) == vector["value"]


@pytest.mark.parametrize("vector", load("transactions"), ids=lambda vector: str(vector["name"]))
def test_transaction_is_signed_and_named_as_the_format_says(vector: dict[str, Any]) -> None:
    chain, raw = bytes.fromhex(vector["chain_id"]), bytes.fromhex(vector["encoding"])
    content, signature = bytes.fromhex(vector["content"]), bytes.fromhex(vector["signature"])
    assert raw == b"\x92" + content + b"\xc4\x40" + signature
    assert msgpack.packb(unplain(vector["value"]), use_bin_type=True) == raw
    digest = tagged("spchain/transaction-signature/1", chain + content)
    assert digest.hex() == vector["signing_digest"]
    key = PrivateKey(bytes.fromhex(vector["secret_key"]))
    independent_verify(key.public_key, digest, signature)
    assert key.sign(digest) == signature
    checked = check_transaction(raw, testing.rules_of(chain))
    assert checked.id.hex() == vector["transaction_id"] == tagged("spchain/transaction/1", raw).hex()
    assert checked.sender.hex() == vector["sender_address"]


@pytest.mark.parametrize("vector", load("identifiers"), ids=lambda vector: str(vector["name"]))
def test_identifier_is_the_tagged_sha256_of_its_parts(vector: dict[str, Any]) -> None:
    assert tagged(vector["tag"], bytes.fromhex("".join(vector["parts"]))).hex() == vector["digest"]


@pytest.mark.parametrize(
    "vector", [v for v in load("trees") if v["name"] == "merkle"], ids=lambda v: str(len(v["items"]))
)
def test_merkle_root_and_proofs(vector: dict[str, Any]) -> None:
    items, root = [bytes.fromhex(item) for item in vector["items"]], bytes.fromhex(vector["root"])
    assert merkle_root(items) == root
    for index, proof in enumerate(vector["proofs"]):
        path = tuple(bytes.fromhex(node) for node in proof)
        assert merkle_proof(items, index) == path
        assert verify_merkle_proof(root, items[index], index, len(items), path)


@pytest.mark.parametrize(
    "vector", [v for v in load("trees") if v["name"] == "mountain range"], ids=lambda v: str(len(v["items"]))
)
def test_mountain_ranges_and_their_proofs(vector: dict[str, Any]) -> None:
    items = [bytes.fromhex(item) for item in vector["items"]]
    peaks = tuple(bytes.fromhex(peak) for peak in vector["peaks"])
    grown: tuple[bytes, ...] = ()
    ranges = [grown]
    for count, item in enumerate(items):
        grown = mountain_range.append(grown, count, item)
        ranges.append(grown)
    assert grown == peaks
    if items:
        assert peaks[-1] == tagged("spchain/mountain-leaf/1", items[-1]) or len(items) % 2 == 0
    for place, proof in enumerate(vector["proofs"]):
        path = tuple(bytes.fromhex(node) for node in proof)
        assert mountain_range.verify(peaks, len(items), place, items[place], path)
    for earlier, extension in enumerate(vector["extensions"]):
        subtrees = tuple(bytes.fromhex(node) for node in extension)
        assert mountain_range.verify_extension(ranges[earlier], earlier, peaks, len(items), subtrees)


def test_every_transaction_of_the_example_microblock_takes_effect() -> None:
    store = MemoryStore(GENESIS)
    update = testing.next_update(store, [RAW])
    assert {receipt.reason for _, receipt in update.receipts} == {""}
    assert all(receipt.height == 1 for _, receipt in update.receipts)


def test_every_kind_of_transaction_has_a_vector() -> None:
    kinds = {vector["name"] for vector in load("transactions")}
    assert kinds == {kind.__name__ for kind in (*get_args(Body), *get_args(Evidence))} - {"ReportMisbehaviour"}


def test_batch_is_the_array_of_its_transactions_and_its_digest_covers_their_identifiers() -> None:
    (vector,) = [v for v in load("trees") if v["name"] == "batch"]
    raws = decode_batch(bytes.fromhex(vector["encoding"]))
    ids = [tagged("spchain/transaction/1", raw) for raw in raws]
    assert [identifier.hex() for identifier in ids] == vector["transaction_ids"]
    assert batch_digest(ids).hex() == vector["digest"]
    assert msgpack.packb(list(raws), use_bin_type=True).hex() == vector["encoding"]


@pytest.mark.parametrize("vector", [v for v in load("trees") if v["name"] == "state"], ids=lambda v: str(v["of"]))
def test_state_root_follows_the_textbook_definition_and_proofs_verify(vector: dict[str, Any]) -> None:
    entries = {bytes.fromhex(key): bytes.fromhex(value) for key, value in vector["entries"]}
    root = bytes.fromhex(vector["root"])
    assert textbook_root(entries) == root
    for proof in vector["proofs"]:
        key = bytes.fromhex(proof["key"])
        assert verify_state_proof(
            root, key, entries.get(key), decode(StateProof, bytes.fromhex(proof["encoding"]), 4096)
        )


def textbook_root(entries: dict[bytes, bytes]) -> bytes:
    leaves = []
    for key, value in entries.items():
        position = tagged("spchain/state-key/1", key)
        leaf = tagged("spchain/state-leaf/1", position + tagged("spchain/state-value/1", value))
        leaves.append((f"{int.from_bytes(position, 'big'):0256b}", leaf))

    def root(members: list[tuple[str, bytes]]) -> bytes:
        if len(members) < 2:
            return members[0][1] if members else bytes(32)
        bit = next(i for i in range(256) if len({position[i] for position, _ in members}) == 2)
        halves = [root([member for member in members if member[0][bit] == side]) for side in "01"]
        return tagged("spchain/state-node/1", bytes([bit]) + halves[0] + halves[1])

    return root(leaves)


@pytest.mark.parametrize("vector", load("keys"), ids=lambda vector: str(vector["name"]))
def test_keys_addresses_signatures_and_chameleon_hashes(vector: dict[str, Any]) -> None:
    secret, public_key = bytes.fromhex(vector["secret_key"]), bytes.fromhex(vector["public_key"])
    independent = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1()).public_key()
    assert independent == point_of(public_key)
    assert tagged("spchain/address/1", public_key)[:20].hex() == vector["address"]
    digest, signature = bytes.fromhex(vector["digest"]), bytes.fromhex(vector["signature"])
    assert verify(public_key, digest, signature)
    independent_verify(public_key, digest, signature)
    assert chameleon.public_key(bytes.fromhex(vector["chameleon_secret"])).hex() == vector["chameleon_public"]
    opening = bytes.fromhex(vector["chameleon_opening"])
    assert chameleon.check_opening(bytes.fromhex(vector["chameleon_hash_of_digest"]), digest, opening)


@pytest.mark.parametrize("vector", load("proofs"), ids=lambda vector: str(vector["name"]))
def test_proofs_of_the_chameleon_hash_verify_natively_and_in_plain_python(vector: dict[str, Any]) -> None:
    names = ("verifying_key", "chameleon_public", "chameleon_hash", "digest", "proof")
    encoded_key, public, hashed, digest, proof = (bytes.fromhex(vector[name]) for name in names)
    key = VerifyingKey.decode(encoded_key)
    assert verify_proof(key, public, hashed, digest, proof)
    assert not verify_proof(key, public, hashed, tagged("spchain/vote/1", digest), proof)
    equation, inputs, points = (
        groth16_pure.equation(key.points),
        public_inputs(public, hashed, digest),
        proof_points(proof),
    )
    assert equation is not None
    assert inputs is not None
    assert points is not None
    assert equation(inputs, points)


def test_transaction_proof_of_the_vectors_verifies() -> None:
    (vector,) = [v for v in load("encodings") if v["name"] == "TransactionProof"]
    proof = decode(TransactionProof, bytes.fromhex(vector["encoding"]), 4096)
    (record,) = [v for v in load("transactions") if v["name"] == "CommitRecord"]
    identifier = bytes.fromhex(record["transaction_id"])
    assert verify_transaction_proof(microblock_hash(proof.header), identifier, proof)


def example(kind: type[W]) -> W:
    (vector,) = [v for v in load("encodings") if v["name"] == kind.__name__]
    raw = bytes.fromhex(vector["encoding"])
    return decode(kind, raw, len(raw))


def test_keyblock_is_signed_as_the_format_says() -> None:
    signed = example(SignedKeyblock)
    digest = tagged("spchain/keyblock-signature/1", CHAIN + tagged("spchain/keyblock/1", encode(signed.keyblock)))
    independent_verify(signed.keyblock.miner, digest, signed.signature)
    assert example(Microblock).keyblock == signed
    assert example(MicroblockHeader).pinned == tagged("spchain/pinned/1", encode(signed))


def test_evidence_holds_two_signatures_of_what_the_format_says() -> None:
    votes = example(ConflictingVotes)
    assert votes.first_hash < votes.second_hash
    for block_hash, signature in (
        (votes.first_hash, votes.first_signature),
        (votes.second_hash, votes.second_signature),
    ):
        content = msgpack.packb([votes.epoch, votes.round, block_hash], use_bin_type=True)
        independent_verify(votes.offender, tagged("spchain/vote/1", CHAIN + content), signature)
    both = example(ConflictingMicroblocks)
    hashes = [tagged("spchain/microblock/1", encode(header)) for header in (both.first, both.second)]
    assert hashes[0] < hashes[1]
    for block_hash, signature in zip(hashes, (both.first_signature, both.second_signature), strict=True):
        digest = tagged("spchain/microblock-signature/1", CHAIN + block_hash)
        independent_verify(both.offender, digest, signature)


def test_plain_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(AssertionError, match="no form in JSON"):
        generate.plain(1.5)
    assert msgspec.json.encode(generate.plain((1, "a", None, b"\x01"))) == b'[1,"a",null,{"hex":"01"}]'
