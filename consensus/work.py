# SPDX-License-Identifier: GPL-3.0-or-later
"""Work: the puzzle that a keyblock solves, and what a solution counts.

    SHA-256(keyblock_hash) < target        keyblock_hash = SHA-256(tag ‖ tag ‖ encoding of the keyblock)

Both sides are 256-bit integers, big-endian; the encoding ends with the nonce. RepuCoin's puzzle is over the previous keyblock, the nonce
and the miner's key. Ours is over the keyblock's hash, and thereby over everything in it: the committed microblock that was mined on, so
that work done for one history cannot be shown for another; the key that will reveal the seed of the next leaders; the time. The seed of
the leaders rests on that hash. Whatever the miner could vary in it without solving the puzzle again, it could vary until it liked the
leaders: one solution would buy as many draws as there are milliseconds in the allowed times. The chain is bound through `previous`, which
leads to the genesis. Only the signature is outside: it enters no seed.

Requirements:
R1 (cost) a check is one hash of at most 274 bytes and one of 32, and reads no state, whatever the target.
R2 (binding) a solution is one keyblock: another value in any field makes another hash, which must be below the target by itself.
R3 (canonical) a target is a 32-byte big-endian integer within [1, limit]; each has exactly one encoding.
R4 (search) `search` finds the first solution of a range of nonces, and what it finds passes the check; slices join without gap.
R5 (measure) work is expected hashes: halving the target doubles it, and it is at least 1.

Source: RepuCoin (IEEE Transactions on Computers 2019), "Blocks"; work as in Bitcoin's GetBlockProof.
"""

from hashlib import sha256

import msgspec

from ledger.blocks import Keyblock, keyblock_hash, unsolved_keyblock_state
from ledger.errors import InvalidInput
from ledger.rules import WorkRules

_NONCES = 2**256


def encode_target(target: int) -> bytes:
    """Return a target as it stands in a keyblock."""
    assert 1 <= target < 2**256, "a target is a positive 256-bit integer"
    return target.to_bytes(32, "big")


def decode_target(raw: bytes, rules: WorkRules) -> int:
    """Return a target from outside as an integer within [1, limit]. Raises `InvalidInput`."""
    if len(raw) != 32:
        raise InvalidInput(f"target has {len(raw)} bytes; write it as 32 bytes, big-endian")
    limit = int.from_bytes(rules.limit, "big")
    target = int.from_bytes(raw, "big")
    if not 1 <= target <= limit:
        raise InvalidInput(f"target {raw.hex()} is not within 1 and the network's limit {rules.limit.hex()}")
    return target


def puzzle_hash(keyblock: Keyblock) -> bytes:
    """Return the 32 bytes that must be below the target, as a big-endian integer."""
    return sha256(keyblock_hash(keyblock)).digest()


def check_work(keyblock: Keyblock, target: int) -> None:
    """Check that a keyblock states the target that the chain demands, and solves its puzzle. Raises `InvalidInput`."""
    wanted = encode_target(target)
    if keyblock.target != wanted:
        raise InvalidInput(
            f"keyblock states target {keyblock.target.hex()}; the chain demands {wanted.hex()}: mine with that one"
        )
    digest = puzzle_hash(keyblock)
    if digest >= wanted:
        raise InvalidInput(f"keyblock's puzzle hash {digest.hex()} is not below target {wanted.hex()}: mine on")


def search(template: Keyblock, start_nonce: int, attempts: int) -> Keyblock | None:
    """Return a keyblock, whose own nonce does not matter, with the first nonce of so many that solves its puzzle; None if none does.

    A miner calls it in slices, each with the time as it is by then, rests between them according to its duty cycle, and goes on at
    `start_nonce + attempts`; it starts at a random nonce, so that two processes of one miner do not repeat each other.
    """
    assert 0 <= start_nonce < _NONCES, "a nonce is a 256-bit integer"
    assert attempts >= 0, "attempts are counted"
    # All but the nonce is hashed once. Digests and target have one length, so that comparing bytes compares numbers.
    opened, target = unsolved_keyblock_state(template), template.target
    for number in range(start_nonce, min(start_nonce + attempts, _NONCES)):
        nonce = number.to_bytes(32, "big")
        state = opened.copy()
        state.update(nonce)
        if sha256(state.digest()).digest() < target:
            return msgspec.structs.replace(template, nonce=nonce)
    return None


def work_of(target: int) -> int:
    """Return the work of a keyblock with this target, in expected hashes, rounded down as in Bitcoin."""
    assert 1 <= target < 2**256, "a target is a positive 256-bit integer"
    return 2**256 // (target + 1)
