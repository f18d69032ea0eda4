# SPDX-License-Identifier: GPL-3.0-or-later
"""Micro-fees: running balances between patients and institutions, in credits that lie in the contract's escrow.

R1 Credits are conserved: deposits = balances + withdrawn, whatever is sent in whatever order.
R2 Only the chain deposits, and only the owner pays, refunds and withdraws.
R3 At most what was paid, and is not refunded yet, can be refunded to its payer.
"""

from contracts.machine import Context, EntryKind, KeyPart, Machine, Outcome, View, done, refused
from ledger.codec import Address, Digest, Uint, Wire, decoder, encode
from ledger.crypto.keys import ADDRESS_BYTES
from ledger.offchain import Deposit, PayableKeys

MAX_CREDITS = 2**63 - 1
"""Largest amount that a field holds; more than there are credits."""


class MicroFeesParameters(Wire, frozen=True):
    """Bounds of one payment."""

    largest_payment_microcredit: Uint
    """Most that one payment moves: it is for small fees, and a mistake stays small."""


class Pay(Wire, frozen=True, tag=1):
    """Credits move to another account."""

    recipient: Address
    """Who receives."""
    amount_microcredit: Uint
    """Amount in millionths of a credit."""
    reference: Digest
    """Digest of what it is for."""


class Refund(Wire, frozen=True, tag=2):
    """Who was paid gives some of it back."""

    payer: Address
    """Who had paid."""
    amount_microcredit: Uint
    """Amount in millionths of a credit."""


class Withdraw(Wire, frozen=True, tag=3):
    """Credits leave the contract: the chain pays them out once the batch is final."""

    amount_microcredit: Uint
    """Amount in millionths of a credit."""


MicroFeesOperation = Deposit | Pay | Refund | Withdraw

_decode_amount = decoder(Uint, 16, name="amount", own=True)


def balance_key(account: bytes) -> bytes:
    """Return the key of what an account holds here."""
    return b"b" + account


def withdrawn_key(account: bytes) -> bytes:
    """Return the key of all that an account has withdrawn."""
    return b"w" + account


def paid_key(payer: bytes, recipient: bytes) -> bytes:
    """Return the key of what one account has paid another and has not got back."""
    return b"p" + payer + recipient


def payable_keys(account: bytes) -> PayableKeys:
    """Return where an account's credits stand."""
    return PayableKeys(withdrawn_key(account), balance_key(account))


def amount_at(view: View, key: bytes) -> int:
    """Return an amount, 0 where nothing stands."""
    value = view.get(key)
    return 0 if value is None else _decode_amount(value)


def _set(view: View, key: bytes, amount: int) -> None:
    if amount:
        view.put(key, encode(amount))
    else:
        view.delete(key)


def _move(view: View, source: bytes, target: bytes, amount: int) -> str:
    """Move an amount between two different keys; returns why not, or nothing."""
    held, there = amount_at(view, source), amount_at(view, target)
    if not amount:
        return "nothing_to_move"
    if amount > held:
        return "insufficient_balance"
    if there + amount > MAX_CREDITS:
        return "amount_too_large"
    _set(view, source, held - amount)
    _set(view, target, there + amount)
    return ""


def apply(view: View, context: Context[MicroFeesParameters], operation: MicroFeesOperation) -> Outcome:
    """Apply one operation; a payment is answered with the new balance of its sender. What a refused one wrote is dropped."""
    amount, sender = operation.amount_microcredit, context.sender
    own = balance_key(sender)
    if isinstance(operation, Deposit) or context.is_chain:
        return (
            _deposit(view, operation) if context.is_chain and isinstance(operation, Deposit) else refused("not_yours")
        )
    if isinstance(operation, Pay):
        if operation.recipient == sender:
            return refused("same_account")
        if amount > context.parameters.largest_payment_microcredit:
            return refused("amount_too_large")
        paid = paid_key(sender, operation.recipient)
        total = amount_at(view, paid) + amount
        if total > MAX_CREDITS:
            return refused("amount_too_large")
        code = _move(view, own, balance_key(operation.recipient), amount)
        _set(view, paid, total)
    elif isinstance(operation, Refund):
        paid = paid_key(operation.payer, sender)
        left = amount_at(view, paid) - amount
        code = "nothing_to_refund" if left < 0 else _move(view, own, balance_key(operation.payer), amount)
        _set(view, paid, max(left, 0))
    else:
        code = _move(view, own, withdrawn_key(sender), amount)
    return refused(code) if code else done(encode(amount_at(view, own)))


def _deposit(view: View, deposit: Deposit) -> Outcome:
    key = balance_key(deposit.account)
    total = amount_at(view, key) + deposit.amount_microcredit
    if total > MAX_CREDITS:
        return refused("amount_too_large")
    _set(view, key, total)
    return done(encode(total))


ENTRIES = (
    EntryKind("balance", b"b", (KeyPart("account", ADDRESS_BYTES),), Uint),
    EntryKind("withdrawn", b"w", (KeyPart("account", ADDRESS_BYTES),), Uint),
    EntryKind("paid", b"p", (KeyPart("payer", ADDRESS_BYTES), KeyPart("recipient", ADDRESS_BYTES)), Uint),
)
"""Credits of an account, what it has withdrawn, and what one account has paid another; all in microcredits."""

MICRO_FEES: Machine[MicroFeesParameters, MicroFeesOperation] = Machine(
    "micro_fees", 1, MicroFeesParameters, MicroFeesOperation, apply, payable_keys, ENTRIES
)
"""The machine."""
