# SPDX-License-Identifier: GPL-3.0-or-later
"""What all kinds of transactions share while they are applied: who acts, when, with which credits, and for whom they may act.

A *party* is who acts: a patient by the identifier, whatever the key at the moment, or any other account by its address. A key
that a patient has replaced is nobody's: whoever has stolen it is no delegate, guardian or grantee either.
"""

import msgspec

from ledger.crypto.keys import address_of
from ledger.errors import Rejection, RejectionReason
from ledger.guardianship import Power
from ledger.offchain import MachineRegistry
from ledger.patients import Patient
from ledger.rules import Parameters
from ledger.state import (
    ACCOUNTS,
    DELEGATIONS,
    INSTITUTIONS,
    KEY_HOLDERS,
    PATIENTS,
    SUPPLY,
    Account,
    State,
)


class BlockContext(msgspec.Struct, frozen=True):
    """What a transaction may know about the microblock that commits it."""

    height: int
    """Height of the microblock."""
    timestamp_ms: int
    """Its time, in milliseconds since 1970 (UTC)."""
    parameters: Parameters
    """The network's rules."""
    chain_id: bytes
    """The chain's identifier: evidence is of one chain."""
    epoch: int
    """Epoch of the microblock."""
    machines: MachineRegistry
    """The machines of off-chain contracts, the same on every node."""


class Act:
    """One transaction while it is applied. Handlers raise before they write; the sender's account is written last, by the dispatcher."""

    __slots__ = ("balance_microcredit", "context", "public_key", "sender", "state")

    def __init__(
        self, state: State, context: BlockContext, sender: bytes, public_key: bytes, balance_microcredit: int
    ) -> None:
        """Take what the sender's account holds after the fee."""
        self.state = state
        self.context = context
        self.sender = sender
        self.public_key = public_key
        self.balance_microcredit = balance_microcredit

    def require_credits(self, amount_microcredit: int, use: str = "") -> None:
        """Check that the sender can pay an amount beside the fee."""
        if amount_microcredit > self.balance_microcredit:
            detail = (
                f"balance {self.balance_microcredit} microcredits after the fee does not cover {amount_microcredit}"
            )
            raise Rejection(RejectionReason.INSUFFICIENT_BALANCE, f"{detail}{use}")

    def pay(self, recipient: bytes, amount_microcredit: int) -> None:
        """Move credits from the sender to an account; they are there, see `require_credits`."""
        self.balance_microcredit -= amount_microcredit
        self.credit(recipient, amount_microcredit)

    def credit(self, recipient: bytes, amount_microcredit: int) -> None:
        """Add credits that were taken from elsewhere to an account, which may be the sender's."""
        if recipient == self.sender:
            self.balance_microcredit += amount_microcredit
        elif amount_microcredit:  # nothing moves, and no empty account comes into being
            target = self.state.account(recipient)
            balance = target.balance_microcredit + amount_microcredit
            self.state.put(ACCOUNTS, recipient, Account(target.nonce, balance))

    def lose(self, amount_microcredit: int) -> None:
        """Take a penalty from the sender, who can pay it, see `require_credits`; nobody gets it."""
        self.balance_microcredit -= amount_microcredit
        self.burn(amount_microcredit)

    def burn(self, amount_microcredit: int) -> None:
        """Destroy credits that were taken from elsewhere."""
        supply = self.state.supply()
        burnt = supply.burnt_microcredit + amount_microcredit
        self.state.put(SUPPLY, b"", msgspec.structs.replace(supply, burnt_microcredit=burnt))

    def require_holder(self, address: bytes) -> Patient:
        """Return a patient whose newest key has signed the transaction."""
        patient = require_patient(self.state, address)
        if patient.keyblock.signing_key != self.public_key:
            detail = f"only patient {address.hex()} may do this, with the newest key; sender is {self.sender.hex()}"
            raise Rejection(RejectionReason.NOT_PERMITTED, detail)
        return patient

    def require_power(self, address: bytes, power: Power) -> Patient:
        """Return a patient for whom the sender may act: the patient, or a delegate with the power."""
        patient = require_patient(self.state, address)
        if not may_act(self.state, patient, self.public_key, power, self.context.timestamp_ms):
            detail = f"sender {self.sender.hex()} is neither patient {address.hex()} with the newest key nor a delegate"
            raise Rejection(RejectionReason.NOT_PERMITTED, f"{detail} with the power {power!r} at this time")
        return patient


def require_patient(state: State, address: bytes) -> Patient:
    """Return a registered patient."""
    patient = state.get(PATIENTS, address)
    if patient is None:
        raise Rejection(RejectionReason.PATIENT_UNKNOWN, f"patient {address.hex()} is not registered")
    return patient


def require_institution(state: State, address: bytes) -> None:
    """Check that an account is a registered institution's."""
    if state.get(INSTITUTIONS, address) is None:
        raise Rejection(
            RejectionReason.INSTITUTION_UNKNOWN, f"{address.hex()} is not a registered institution; register it first"
        )


def party_of(state: State, address: bytes) -> bytes | None:
    """Return who an account acts as: a patient's identifier, or the address itself; None for a key that a patient has replaced."""
    holder = state.get(KEY_HOLDERS, address)
    if holder is None:
        return address
    return holder.patient if current_account(state, address) == address else None


def current_account(state: State, address: bytes) -> bytes:
    """Return the account that credits for an address go to: of a patient's identifier or former key that of the newest key."""
    holder = state.get(KEY_HOLDERS, address)
    if holder is None:
        return address
    patient = state.get(PATIENTS, holder.patient)
    assert patient is not None, f"key {address.hex()} is held by {holder.patient.hex()}, who is no patient"
    return address_of(patient.keyblock.signing_key)


def encryption_key_of(state: State, party: bytes) -> bytes:
    """Return the Umbral key that is registered for a patient or an institution."""
    institution = state.get(INSTITUTIONS, party)
    if institution is not None:
        return institution.encryption_key
    patient = state.get(PATIENTS, party)
    if patient is not None:
        return patient.keyblock.reencryption_key
    detail = f"{party.hex()} is neither a registered institution nor the identifier of a registered patient"
    raise Rejection(RejectionReason.PARTY_UNKNOWN, detail)


def may_act(state: State, patient: Patient, public_key: bytes, power: Power, time_ms: int) -> bool:
    """Tell whether a key may act for a patient: the patient's newest one, or that of a delegate with the power whose time has not ended."""
    if patient.keyblock.signing_key == public_key:
        return True
    party = party_of(state, address_of(public_key))
    if party is None:
        return False
    delegation = state.get(DELEGATIONS, patient.keyblock.patient + party)
    return delegation is not None and power in delegation.powers and time_ms < delegation.until_ms
