# SPDX-License-Identifier: GPL-3.0-or-later
"""What a published batch comes to, a second time and in plain code: a fold of the machine's rules over a dictionary.

Nothing of `contracts.execution`, `operator` or `watcher` is used, and the root is taken of all entries anew after each request. Only
the machines' rules, hashes and signatures are the production's own: they have tests of their own. The meter of what a request may touch
and the bound of a state are left out, for no run comes near them.
"""

from typing import Any

import msgspec

from contracts.machine import Context, Machine, Outcome, refused
from contracts.machines import SHIPPED
from ledger.codec import decode, encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import address_of, verify
from ledger.crypto.merkle import merkle_root
from ledger.errors import InvalidInput
from ledger.offchain import (
    CHAIN,
    MAX_OPERATION_BYTES,
    MAX_PARAMETERS_BYTES,
    BatchCommitment,
    ContractTerms,
    RequestLeaf,
    data_digest,
    request_digest,
)
from ledger.state_tree import leaves_root, make_leaf, position_of

SIGNED, CHAINS = 1, 2
"""Tags of a user's request and of the chain's own."""

Entries = dict[bytes, bytes]
"""A contract's state."""


class Replayed(msgspec.Struct, frozen=True):
    """What a batch comes to."""

    wrong: str
    """Why it is wrong; empty when it is right."""
    entries: Entries
    """The state after it; before it, when its end is wrong."""
    leaves: tuple[RequestLeaf, ...]
    """Its leaves as published."""
    is_only_within: bool = False
    """Whether nothing but roots within it are wrong, so that watchers who compute the last one alone take it for right (decision 0034)."""


class _Wrong(Exception):
    """A leaf, or the commitment, is not what it should be."""


class _View:
    """The state as one operation sees it; what it writes counts only when it is kept."""

    def __init__(self, entries: Entries) -> None:
        self.entries = dict(entries)

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(b"m" + key)

    def put(self, key: bytes, value: bytes) -> None:
        self.entries[b"m" + key] = value

    def delete(self, key: bytes) -> None:
        self.entries.pop(b"m" + key, None)


def root_of(entries: Entries) -> bytes:
    """Return the root of a state."""
    return leaves_root(sorted(make_leaf(position_of(key), value) for key, value in entries.items()))


def replay(chain_id: bytes, terms: ContractTerms, commitment: BatchCommitment, raw: bytes, before: Entries) -> Replayed:
    """Return what a batch comes to that follows on a state."""
    assert data_digest(raw) == commitment.data_digest, "this is the data of another batch"
    # All that runs publish has passed the members' check, so it has this shape.
    ((*items,),) = msgspec.msgpack.decode(raw)
    leaves = tuple(RequestLeaf(request_digest(request), *facts) for request, *facts in items)
    try:
        _require(merkle_root([encode(leaf) for leaf in leaves]) == commitment.leaves_root, "has other leaves")
        _require(root_of(before) == commitment.previous_root, "does not follow from the state before")
        entries, within = _fold(chain_id, terms, commitment, [item[0] for item in items], leaves, before)
        last = leaves[-1]
        ends = (last.root, last.operation_total, len(leaves)) == (
            commitment.new_root,
            commitment.operation_count,
            commitment.leaf_count,
        )
        _require(ends, "does not end as its last leaf does")
        for place in commitment.forced:
            stands = leaves[place.index].request_digest == place.request_digest
            _require(stands, f"has another request at the forced place {place.index}")
    except _Wrong as wrong:
        return Replayed(f"batch {commitment.number} {wrong}", before, leaves)
    if within:
        return Replayed(f"batch {commitment.number} {within}", entries, leaves, is_only_within=True)
    return Replayed("", entries, leaves)


def _fold(
    chain_id: bytes,
    terms: ContractTerms,
    commitment: BatchCommitment,
    requests: list[bytes],
    leaves: tuple[RequestLeaf, ...],
    before: Entries,
) -> tuple[Entries, str]:
    """Return the state after a batch, and the first root within it that is wrong while everything else is right."""
    entries, total, time_ms, within = before, 0, commitment.from_ms, ""
    machine = next(m for m in SHIPPED if (m.name, m.version) == (terms.machine, terms.version))
    forced = {(place.index, place.request_digest) for place in commitment.forced}
    for index, (raw, leaf) in enumerate(zip(requests, leaves, strict=True)):
        _require(time_ms <= leaf.time_ms <= commitment.until_ms, f"has leaf {index} at a wrong time")
        sender, first, operations = _open(chain_id, terms, raw, index)
        is_forced = (index, leaf.request_digest) in forced
        _require(sender != CHAIN or is_forced, f"has a deposit at {index} that the chain has not made")
        key = b"s" + sender
        following = decode(int, entries.get(key, b"\0"), 16)
        if first == following:
            entries = {**entries, key: encode(following + len(operations))}
            context = Context(
                sender, address_of(terms.operator), _parameters(machine, terms), commitment.number, leaf.time_ms
            )
            outcomes = []
            for operation in operations:
                entries, outcome = _apply(machine, context, entries, operation)
                outcomes.append(outcome)
            counted = {key: value for key, value in entries.items() if key != b"n"}
            entries = {**counted, b"n": encode(len(counted))}
        else:
            _require(is_forced and sender != CHAIN, f"has leaf {index} out of its sender's order")
            outcomes = [refused("wrong_sequence")]
        total += len(operations)
        digest = tagged_hash(Tag.OFFCHAIN_OUTCOMES, encode(tuple(outcomes)))
        right = RequestLeaf(request_digest(raw), leaf.time_ms, total, digest, root_of(entries))
        is_within = leaf == msgspec.structs.replace(right, root=leaf.root) and leaf is not leaves[-1]
        what = f"has a leaf {index} that its request does not come to"
        _require(right == leaf or is_within, what)
        within = within or (what if right != leaf else "")
        time_ms = leaf.time_ms
    return entries, within


def _open(chain_id: bytes, terms: ContractTerms, raw: bytes, index: int) -> tuple[bytes, int, list[bytes]]:
    """Return sender, first number and operations of a request."""
    try:
        tag, *fields = msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise _Wrong(f"has no request at {index}") from error
    if tag == CHAINS:
        contract_id, first, operations = fields
        _require(contract_id == terms.contract_id, f"has a request of another contract at {index}")
        return CHAIN, first, operations
    _require(tag == SIGNED, f"has a request of no kind at {index}")
    content, signature = fields
    contract_id, public_key, first, operations = content
    digest = tagged_hash(Tag.OFFCHAIN_REQUEST_SIGNATURE, chain_id, encode(content))
    genuine = contract_id == terms.contract_id and verify(public_key, digest, signature)
    _require(genuine, f"has a request at {index} that nobody has signed for this contract")
    return address_of(public_key), first, operations


def _parameters(machine: Machine[Any, Any], terms: ContractTerms) -> object:
    return decode(machine.parameters, terms.parameters, MAX_PARAMETERS_BYTES)


def _apply(
    machine: Machine[Any, Any], context: Context[Any], entries: Entries, operation: bytes
) -> tuple[Entries, Outcome]:
    try:
        decoded = decode(machine.operations, operation, MAX_OPERATION_BYTES)
    except InvalidInput:
        return entries, refused("malformed_operation")
    view = _View(entries)
    outcome = machine.apply(view, context, decoded)
    return (view.entries if outcome.is_done else entries), outcome


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise _Wrong(what)
