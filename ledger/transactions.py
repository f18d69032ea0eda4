# SPDX-License-Identifier: GPL-3.0-or-later
"""Transactions: their kinds, identifiers and the two checks that need no state (shape, signature).

A transaction is decoded and its signature checked once per node; afterwards it travels as a `CheckedTransaction`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from ledger.bodies import Body
from ledger.body_checks import check_body
from ledger.chain import Chain
from ledger.codec import PublicKeyBytes, SignatureBytes, Uint, Wire, decoder, encode
from ledger.contract_bodies import ChallengeBatch
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey, address_of, verify
from ledger.crypto.merkle import merkle_root
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.offchain import MAX_FRAUD_PROOF_BYTES

MAX_TRANSACTION_BYTES = 16 * 1024
"""Twice the largest kind but a challenge (a forced request, of up to 8 KiB), and 32 fit into a batch."""
MAX_CHALLENGE_BYTES = MAX_FRAUD_PROOF_BYTES + 1024
"""A challenge alone may be larger: any dispute fits into a proof of fraud, and the rest of the transaction takes 250 bytes."""
MAX_BATCH_BYTES = 512 * 1024
"""Half of the gossip limit, and about 2 000 transfers."""
MAX_BATCH_TRANSACTIONS = 4096
"""More than fit into a batch by size at the smallest transaction (about 170 bytes): bounds the list before decoding it."""
CHAIN_PREFIX_BYTES = 4


class Transaction(Wire, frozen=True):
    """What a sender signs."""

    chain_prefix: Annotated[bytes, msgspec.Meta(min_length=CHAIN_PREFIX_BYTES, max_length=CHAIN_PREFIX_BYTES)]
    """First 4 bytes of the chain's identifier: tells a transaction of another network at once. The signature covers the whole."""
    sender: PublicKeyBytes
    """Public key of the account that pays and acts."""
    nonce: Uint
    """Number of the sender's committed transactions before this one."""
    fee_microcredit: Uint
    """Fee in millionths of a credit, paid when the transaction commits."""
    expiry_height: Uint
    """Last microblock height at which the transaction may commit."""
    body: Body
    """What is to be done."""


class SignedTransaction(Wire, frozen=True):
    """A transaction on the wire."""

    transaction: Transaction
    """The signed content."""
    signature: SignatureBytes
    """The sender's signature of `transaction-signature ‖ chain id ‖ content`."""


# A struct of two: one array byte before the content; two bytes of bin header and 64 of signature after it.
_CONTENT_START, _CONTENT_END = 1, -66
_decode_signed = decoder(SignedTransaction, MAX_CHALLENGE_BYTES)
_BatchItems = Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_BATCH_TRANSACTIONS)]
_decode_batch: Callable[[bytes], tuple[bytes, ...]] = decoder(_BatchItems, MAX_BATCH_BYTES, name="batch")


class CheckedTransaction(msgspec.Struct, frozen=True, gc=False):
    """A transaction whose shape and signatures are right on this chain; made by `check_transaction` only."""

    id: bytes
    """32-byte hash of the signed bytes."""
    raw: bytes
    """The signed bytes."""
    sender: bytes
    """20-byte address of the sender."""
    transaction: Transaction
    """The content."""


def transaction_id(raw: bytes) -> bytes:
    """Return the 32-byte identifier of a signed transaction's bytes."""
    return tagged_hash(Tag.TRANSACTION, raw)


def sign_transaction(
    chain_id: bytes, key: PrivateKey, *, nonce: int, fee_microcredit: int, expiry_height: int, body: Body
) -> bytes:
    """Return the bytes of a transaction from `key`'s account, signed for the chain."""
    transaction = Transaction(
        chain_id[:CHAIN_PREFIX_BYTES], key.public_key, nonce, fee_microcredit, expiry_height, body
    )
    digest = tagged_hash(Tag.TRANSACTION_SIGNATURE, chain_id, encode(transaction))
    return encode(SignedTransaction(transaction, key.sign(digest)))


def check_shape(raw: bytes, chain_id: bytes) -> SignedTransaction:
    """First check: size, canonical encoding, known kind, right chain. Raises `Rejection`."""
    if len(raw) > MAX_CHALLENGE_BYTES:
        raise Rejection(RejectionReason.TOO_LARGE, f"{len(raw)} bytes; at most {MAX_CHALLENGE_BYTES} are allowed")
    try:
        signed = _decode_signed(raw)
    except InvalidInput as error:
        raise Rejection(RejectionReason.MALFORMED, str(error)) from error
    if len(raw) > MAX_TRANSACTION_BYTES and not isinstance(signed.transaction.body, ChallengeBatch):
        detail = f"{len(raw)} bytes; at most {MAX_TRANSACTION_BYTES} are allowed, {MAX_CHALLENGE_BYTES} for a challenge"
        raise Rejection(RejectionReason.TOO_LARGE, detail)
    prefix = signed.transaction.chain_prefix
    if prefix != chain_id[:CHAIN_PREFIX_BYTES]:
        detail = (
            f"made for chain {prefix.hex()}…, this is {chain_id[:CHAIN_PREFIX_BYTES].hex()}…; sign it for this network"
        )
        raise Rejection(RejectionReason.WRONG_CHAIN, detail)
    return signed


def check_transaction(raw: bytes, chain: Chain) -> CheckedTransaction:
    """Shape, then every signature and proof that needs no state. Raises `Rejection`.

    About 60 µs, nearly all in C without the GIL, and 2 ms for a label; call it from worker threads in chunks.
    """
    signed = check_shape(raw, chain.id)
    transaction = signed.transaction
    digest = tagged_hash(Tag.TRANSACTION_SIGNATURE, chain.id, raw[_CONTENT_START:_CONTENT_END])
    if not verify(transaction.sender, digest, signed.signature):
        raise Rejection(RejectionReason.BAD_SIGNATURE, f"not signed by {transaction.sender.hex()} for this chain")
    check_body(transaction.body, chain)
    return CheckedTransaction(transaction_id(raw), raw, address_of(transaction.sender), transaction)


def encode_batch(raw_transactions: Sequence[bytes]) -> bytes:
    """Return the bytes of a batch: the array of its signed transactions."""
    return encode(tuple(raw_transactions))


def decode_batch(raw: bytes) -> tuple[bytes, ...]:
    """Return the signed transactions of a batch, not yet checked. Raises `InvalidInput`."""
    transactions = _decode_batch(raw)
    if not transactions:
        raise InvalidInput("a batch has no transactions; send none instead of an empty one")
    return transactions


def batch_digest(transaction_ids: Sequence[bytes]) -> bytes:
    """Return the identifier of a batch: its count and the Merkle root of its transactions' identifiers."""
    return tagged_hash(Tag.BATCH, len(transaction_ids).to_bytes(8, "big"), merkle_root(transaction_ids))
