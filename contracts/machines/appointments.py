# SPDX-License-Identifier: GPL-3.0-or-later
"""Appointments of one institution: a slot is offered, booked, given back or closed; and acknowledgements of documents."""

from typing import Literal

from msgspec.structs import replace

from contracts.machine import Context, EntryKind, KeyPart, Machine, Outcome, View, done, refused
from ledger.codec import Address, Digest, Uint, Wire, decoder, encode
from ledger.crypto.hashing import DIGEST_BYTES
from ledger.crypto.keys import ADDRESS_BYTES


class AppointmentsParameters(Wire, frozen=True):
    """Whose appointments these are."""

    institution: Address
    """Account that offers slots."""
    notice_ms: Uint
    """How long before its beginning a slot can be booked or given back at the latest."""


class OfferSlot(Wire, frozen=True, tag=1):
    """The institution offers a slot."""

    slot: Uint
    """Its number, chosen by the institution; each serves once."""
    start_ms: Uint
    """Beginning, in milliseconds since 1970 (UTC)."""
    end_ms: Uint
    """End."""


class BookSlot(Wire, frozen=True, tag=2):
    """Somebody takes a free slot."""

    slot: Uint
    """Its number."""
    note: Digest
    """Digest of what the patient and the institution know about it."""


class CancelSlot(Wire, frozen=True, tag=3):
    """Who booked gives a slot back, then it is free again; or the institution withdraws it for good."""

    slot: Uint
    """Its number."""


class CloseSlot(Wire, frozen=True, tag=4):
    """The institution notes, after the beginning, whether the patient was there."""

    slot: Uint
    """Its number."""
    was_there: bool
    """Whether the patient came."""


class Acknowledge(Wire, frozen=True, tag=5):
    """The sender has received a document."""

    document: Digest
    """Digest of the document."""


SlotOperation = OfferSlot | BookSlot | CancelSlot | CloseSlot
AppointmentOperation = SlotOperation | Acknowledge


class Slot(Wire, frozen=True):
    """A slot in the state."""

    start_ms: Uint
    """Beginning, in milliseconds since 1970 (UTC)."""
    end_ms: Uint
    """End."""
    status: Literal["free", "booked", "withdrawn", "attended", "missed"]
    """What became of it."""
    patient: Address | None = None
    """Who booked it; nil while it is free."""
    note: Digest | None = None
    """Digest of the note; nil while it is free."""


_decode_slot = decoder(Slot, 128, own=True)


def slot_key(slot: int) -> bytes:
    """Return the key of a slot."""
    return b"s" + slot.to_bytes(8, "big")


def acknowledgement_key(sender: bytes, document: bytes) -> bytes:
    """Return the key of an acknowledgement; its value is the time in milliseconds."""
    return b"a" + sender + document


def apply(view: View, context: Context[AppointmentsParameters], operation: AppointmentOperation) -> Outcome:
    """Apply one operation."""
    if isinstance(operation, Acknowledge):
        key = acknowledgement_key(context.sender, operation.document)
        if view.get(key) is not None:
            return refused("already_acknowledged")
        view.put(key, encode(context.time_ms))
        return done()
    key = slot_key(operation.slot)
    value = view.get(key)
    slot = None if value is None else _decode_slot(value)
    changed = _changed(slot, operation, context, is_institution=context.sender == context.parameters.institution)
    if isinstance(changed, str):
        return refused(changed)
    view.put(key, encode(changed))
    return done()


def _changed(
    slot: Slot | None, operation: SlotOperation, context: Context[AppointmentsParameters], *, is_institution: bool
) -> Slot | str:
    """Return the slot afterwards, or why it stays as it is."""
    if isinstance(operation, OfferSlot | CloseSlot) and not is_institution:
        return "not_the_institution"
    if isinstance(operation, OfferSlot):
        if slot is not None:
            return "slot_exists"
        is_sound = operation.start_ms < operation.end_ms
        return Slot(operation.start_ms, operation.end_ms, "free") if is_sound else "wrong_period"
    if slot is None:
        return "slot_unknown"
    if isinstance(operation, CloseSlot):
        if slot.status != "booked" or context.time_ms < slot.start_ms:
            return "not_booked" if slot.status != "booked" else "too_early"
        return replace(slot, status="attended" if operation.was_there else "missed")
    if is_institution and isinstance(operation, CancelSlot):
        return replace(slot, status="withdrawn") if slot.status in {"free", "booked"} else "slot_closed"
    if context.time_ms + context.parameters.notice_ms > slot.start_ms:
        return "too_late"
    return _booked_or_freed(slot, operation, context.sender)


def _booked_or_freed(slot: Slot, operation: BookSlot | CancelSlot, sender: bytes) -> Slot | str:
    if isinstance(operation, BookSlot):
        booked = replace(slot, status="booked", patient=sender, note=operation.note)
        return booked if slot.status == "free" else "slot_taken"
    is_own = slot.status == "booked" and slot.patient == sender
    return replace(slot, status="free", patient=None, note=None) if is_own else "not_yours"


ENTRIES = (
    EntryKind("slot", b"s", (KeyPart("slot", 8, is_number=True),), Slot),
    EntryKind("acknowledgement", b"a", (KeyPart("sender", ADDRESS_BYTES), KeyPart("document", DIGEST_BYTES)), Uint),
)
"""A slot; when a document was acknowledged, in milliseconds since 1970 (UTC)."""

APPOINTMENTS: Machine[AppointmentsParameters, AppointmentOperation] = Machine(
    "appointments", 1, AppointmentsParameters, AppointmentOperation, apply, entries=ENTRIES
)
"""The machine."""
