# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence files: one claim about records, grants or contracts, with all that it takes to check it against a keyblock's hash alone.

    keyblock hash ── keyblock ── state root ── proofs ── entries of the state ── claim
                        └─ miner's signature ── chain identifier ── genesis (name and rules of the network)

Every byte of a file is bound by that hash, by a signature that a bound key gave, or by being the only encoding: a file that was
changed anywhere is refused. (One that proves an absence may be turned into one that proves, truly, another absence.) Nobody is asked,
neither a node nor a clock.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from ledger.blocks import SignedKeyblock, is_signed_by_miner, keyblock_hash
from ledger.chain import chain_of
from ledger.codec import Wire, decoder, encode
from ledger.errors import InvalidInput
from ledger.genesis import MAX_GENESIS_BYTES, decode_genesis
from ledger.state import MAX_STATE_VALUE_BYTES
from ledger.state_tree import StateProof, verify_state_proof
from records.claims import (
    AccessClaim,
    Claim,
    ContractReader,
    ContractValueClaim,
    EvidenceRefused,
    Fault,
    Found,
    GrantClaim,
    HistoryClaim,
    LabelClaim,
    Moment,
    OperationClaim,
    RecordClaim,
    RevocationClaim,
    Scene,
    T,
    Walk,
    moment,
)
from records.contract_walks import walk_contract_value, walk_operation
from records.grant_walks import walk_access, walk_grant, walk_revocation
from records.record_walks import MAX_HISTORY_RECORDS, walk_history, walk_label, walk_record

MAGIC: Final = "spchain-evidence"
VERSION: Final = 1
MAX_KEY_BYTES = 128
"""The longest state key, that of an index of grants, has 53 bytes."""
MAX_ENTRIES = 2 * MAX_HISTORY_RECORDS + 64
"""Each record of a history may have an author of its own; a few entries come before."""
MAX_EVIDENCE_BYTES = 16 * 1024 * 1024
"""A history of 4096 records takes about 6 MB at a million entries of the state, a genesis at most one."""
_PREFIX = b"\x96" + encode(MAGIC)
"""What every file begins with: an array of six, the first of them the magic."""


class StateEntry(Wire, frozen=True):
    """What the state says under a key."""

    key: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_KEY_BYTES)]
    """The state key."""
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_STATE_VALUE_BYTES)] | None
    """Its encoded value; nil when there is none, which is proved as well."""
    proof: StateProof
    """Proof under the state root of the keyblock."""


class EvidenceFile(Wire, frozen=True):
    """A file of evidence."""

    magic: Literal["spchain-evidence"]
    """What this is."""
    version: Literal[1]
    """Version of the format."""
    genesis: Annotated[bytes, msgspec.Meta(max_length=MAX_GENESIS_BYTES)]
    """Encoded genesis: its hash is the chain's identifier, its content names the network."""
    keyblock: SignedKeyblock
    """The keyblock whose hash the verifier knows; its signature binds it to the chain."""
    claim: Claim
    """What is claimed."""
    entries: Annotated[tuple[StateEntry, ...], msgspec.Meta(max_length=MAX_ENTRIES)]
    """The entries that the claim's walk asks for, in its order."""


class Findings(msgspec.Struct, frozen=True):
    """What a file proves."""

    claim: str
    """Kind of the claim."""
    network: str
    """Name of the network."""
    chain_id: bytes
    """Identifier of the chain."""
    keyblock: bytes
    """Hash of the keyblock that proves it."""
    mined_ms: int
    """When the keyblock was mined, as it states, in milliseconds since 1970 (UTC)."""
    epoch: int
    """Number of the epoch at whose beginning the state was as it is proved."""
    height: int
    """Height of the microblock after which it was so."""
    proven: tuple[str, ...]
    """What is proven, in plain words."""
    not_proven: tuple[str, ...]
    """What a reader might take for proven and is not."""
    facts: Mapping[str, object]
    """The same for programs: entries of the state by what they are."""


Fetch = Callable[[Sequence[bytes]], Sequence[StateEntry]]
"""Gets entries of the state by their keys; may raise."""

_WALKS: Mapping[type, tuple[str, Callable[[Scene, Any, Moment], Walk[Found]]]] = {
    RecordClaim: ("record", walk_record),
    HistoryClaim: ("history", walk_history),
    GrantClaim: ("grant", walk_grant),
    RevocationClaim: ("revocation", walk_revocation),
    AccessClaim: ("access", walk_access),
    LabelClaim: ("label", walk_label),
    OperationClaim: ("operation", walk_operation),
    ContractValueClaim: ("contract-value", walk_contract_value),
}
"""By kind of claim; `Any` because each walk takes its own kind."""

_decode = decoder(EvidenceFile, MAX_EVIDENCE_BYTES)


def verify(raw: bytes, trusted_hash: bytes, reader: ContractReader | None = None) -> Findings:
    """Check a file against the hash of a keyblock; what off-chain contracts did takes a reader. Raises `EvidenceRefused`."""
    evidence = decode_evidence(raw)
    given = keyblock_hash(evidence.keyblock.keyblock)
    if given != trusted_hash:
        detail = f"the file rests on keyblock {given.hex()}, not on {trusted_hash.hex()}"
        raise EvidenceRefused(
            Fault.WRONG_KEYBLOCK, f"{detail}; take the hash from a source that you trust, not from the file"
        )
    waiting = list(reversed(evidence.entries))

    def fetch(keys: Sequence[bytes]) -> list[StateEntry]:
        found = []
        for key in keys:
            if not waiting or waiting[-1].key != key:
                detail = f"the claim needs state key {key.hex()} as entry {len(evidence.entries) - len(waiting)}"
                raise EvidenceRefused(Fault.MISSING_ENTRY, f"{detail}, which is not there")
            found.append(waiting.pop())
        return found

    findings = _check(evidence.genesis, evidence.keyblock, evidence.claim, fetch, reader)
    if waiting:
        detail = f"{len(waiting)} of {len(evidence.entries)} entries belong to nothing that is claimed"
        raise EvidenceRefused(Fault.SUPERFLUOUS_ENTRY, detail)
    return findings


def gather(
    genesis: bytes, keyblock: SignedKeyblock, claim: Claim, fetch: Fetch, reader: ContractReader | None = None
) -> tuple[bytes, Findings]:
    """Make a file of what `fetch` gets, from an untrusted node for instance; everything is checked on the way.

    Raises:
        EvidenceRefused: the claim is not so under this keyblock, or `fetch` got something false.
    """
    gathered: list[StateEntry] = []

    def keeping(keys: Sequence[bytes]) -> Sequence[StateEntry]:
        found = fetch(keys)
        gathered.extend(found)
        return found

    findings = _check(genesis, keyblock, claim, keeping, reader)
    raw = encode(EvidenceFile(MAGIC, VERSION, genesis, keyblock, claim, tuple(gathered)))
    if len(raw) > MAX_EVIDENCE_BYTES:
        raise EvidenceRefused(
            Fault.NOT_SO, f"the file would have {len(raw)} bytes, at most {MAX_EVIDENCE_BYTES} are allowed"
        )
    return raw, findings


def decode_evidence(raw: bytes) -> EvidenceFile:
    """Read a file without checking what it proves. Raises `EvidenceRefused`."""
    if raw[: len(_PREFIX)] != _PREFIX:
        raise EvidenceRefused(Fault.MALFORMED, "this is no evidence file of this program")
    if raw[len(_PREFIX) : len(_PREFIX) + 1] != encode(VERSION):
        raise EvidenceRefused(Fault.WRONG_VERSION, f"this program reads version {VERSION} of the format")
    try:
        return _decode(raw)
    except InvalidInput as error:
        raise EvidenceRefused(Fault.MALFORMED, str(error)) from error


def check_entry(root: bytes, key: bytes, entry: StateEntry) -> None:
    """Check that an entry is the one of a key under a state root. Raises `EvidenceRefused`."""
    if entry.key != key or not verify_state_proof(root, key, entry.value, entry.proof):
        raise EvidenceRefused(Fault.WRONG_PROOF, f"state key {key.hex()} is not proved to be as it is given")


def _check(
    genesis: bytes, signed: SignedKeyblock, claim: Claim, fetch: Fetch, reader: ContractReader | None
) -> Findings:
    scene = _scene(genesis, signed, reader)
    kind, walk = _WALKS[type(claim)]
    root = scene.keyblock.state_root

    def run() -> Walk[tuple[Moment, Found]]:
        then = yield from moment(scene)
        found = yield from walk(scene, claim, then)
        return then, found

    def values(keys: Sequence[bytes]) -> list[bytes | None]:
        found = fetch(keys)
        if len(found) != len(keys):
            raise EvidenceRefused(Fault.MISSING_ENTRY, f"{len(found)} entries were given for {len(keys)} keys")
        for key, item in zip(keys, found, strict=True):
            check_entry(root, key, item)
        return [item.value for item in found]

    then, found = _drive(run(), values)
    identifier = keyblock_hash(scene.keyblock)
    return Findings(
        claim=kind,
        network=scene.genesis.network,
        chain_id=scene.chain.id,
        keyblock=identifier,
        mined_ms=scene.keyblock.timestamp_ms,
        epoch=then.epoch,
        height=then.height,
        proven=found.proven,
        not_proven=(
            *found.not_proven,
            f"that keyblock {identifier.hex()} is of the chain that everybody uses: compare the hash with a source that you trust",
        ),
        facts=found.facts,
    )


def _scene(genesis: bytes, signed: SignedKeyblock, reader: ContractReader | None) -> Scene:
    try:
        content = decode_genesis(genesis)
    except InvalidInput as error:
        raise EvidenceRefused(Fault.MALFORMED, str(error)) from error
    chain = chain_of(content)
    if not is_signed_by_miner(chain.id, signed):
        detail = f"the keyblock is not signed for chain {chain.id.hex()}, which the genesis in the file makes"
        raise EvidenceRefused(Fault.WRONG_CHAIN, detail)
    return Scene(signed.keyblock, content, chain, reader)


def _drive(walk: Walk[T], values: Callable[[Sequence[bytes]], Sequence[bytes | None]]) -> T:
    try:
        asked = next(walk)
        while True:
            asked = walk.send(values(asked))
    except StopIteration as stop:
        result: T = stop.value
        return result
