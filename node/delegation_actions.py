# SPDX-License-Identifier: GPL-3.0-or-later
"""Acting for a patient, each step in one call: the patient delegates powers and hands keys over, the delegate takes them and reads.

Powers stand on the chain and end there. Keys go from the patient to the delegate as one file, in which they are sealed; the delegate keeps
the file as it is and opens it whenever it acts.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec

from ledger.bodies import DelegatePowers
from ledger.codec import Wire, decoder, encode
from ledger.errors import InvalidInput
from ledger.guardianship import POWERS, Power
from ledger.patients import PatientKeyblock
from node.actions import DEFAULT_TIMEOUT_S, Actor, Committed, open_record
from node.api import models
from node.key_ring import MAX_GENERATIONS
from node.parties import encryption_key, keyblocks
from records.handover import MAX_HANDOVER_BYTES, TakenKeys, hand_over, take_over


class Handovers(Wire, frozen=True):
    """A patient's keys on their way to a delegate, in a file: one hand-over for each generation that the patient holds."""

    handovers: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_HANDOVER_BYTES)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_GENERATIONS),
    ]
    """Encoded `KeyHandover`s."""
    generations: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=MAX_GENERATIONS)]
    """Generation of each."""


MAX_HANDOVERS_BYTES = MAX_GENERATIONS * (MAX_HANDOVER_BYTES + 16)
"""A file of as many hand-overs as a key ring has generations."""


def delegate(
    actor: Actor, delegate: bytes, powers: tuple[Power, ...], until_ms: int, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Committed:
    """As a patient, let somebody act for oneself until a time; no powers take everything back. Raises `Rejection`."""
    return actor.commit(DelegatePowers(actor.keys.identifier, delegate, powers, until_ms), timeout_s)


def powers_in(texts: Iterable[str]) -> tuple[Power, ...]:
    """Return powers by name, each once and in order. Raises `InvalidInput`."""
    named = set(texts)
    unknown = sorted(named - set(POWERS))
    if unknown:
        raise InvalidInput(f"there is no power {', '.join(unknown)}; there are {', '.join(POWERS)}")
    return tuple(power for power in POWERS if power in named)


def hand_over_keys(actor: Actor, delegate: bytes, *, trapdoor: bool) -> bytes:
    """As a patient, return the keys of all generations in the key ring, sealed to a delegate.

    Args:
        actor: the patient.
        delegate: who gets them.
        trapdoor: whether the delegate may also open the chameleon hash, which permitting labels takes.
    """
    target = (delegate, encryption_key(actor.client, delegate))
    blocks = keyblocks(actor.client, actor.keys.identifier)
    handovers: dict[int, bytes] = {}
    for generation, keyblock in blocks.items():
        for identity in actor.keys.generations:
            if identity.public.reencryption_key == keyblock.reencryption_key:
                secrets = (identity.reencryption.secret, identity.chameleon_secret if trapdoor else b"")
                handovers[generation] = hand_over(
                    actor.rules.chain_id, actor.identity.signing, keyblock, secrets, target
                )
    if not handovers:
        raise InvalidInput("none of the patient's generations of keys is in the key file; use the newest copy of it")
    return encode(Handovers(tuple(handovers.values()), tuple(handovers)))


def take_keys(actor: Actor, patient: bytes, raw: bytes) -> dict[int, TakenKeys]:
    """As a delegate, open the keys that a patient has handed over, by generation.

    Raises:
        InvalidInput: no hand-over, sealed to somebody else, not signed with the patient's present key, or not the patient's keys.
    """
    found = decode_handovers(raw)
    if len(found.generations) != len(found.handovers) or len(set(found.generations)) != len(found.generations):
        raise InvalidInput("the hand-over names its generations wrongly; ask the patient for a new one")
    blocks = keyblocks(actor.client, patient)
    signing_key = blocks[max(blocks)].signing_key
    taken: dict[int, TakenKeys] = {}
    for generation, handover in zip(found.generations, found.handovers, strict=True):
        if generation not in blocks:
            raise InvalidInput(
                f"patient {patient.hex()} has no generation {generation} of keys; ask for a new hand-over"
            )
        taken[generation] = _take(actor, handover, signing_key, blocks[generation])
    return taken


def _take(actor: Actor, handover: bytes, signing_key: bytes, keyblock: PatientKeyblock) -> TakenKeys:
    # It was sealed to the key that the delegate had at that time.
    for identity in actor.keys.generations[:-1]:
        try:
            return take_over(
                actor.rules.chain_id, handover, actor.keys.identifier, identity.reencryption, signing_key, keyblock
            )
        except InvalidInput:
            continue
    oldest = actor.keys.generations[-1].reencryption
    return take_over(actor.rules.chain_id, handover, actor.keys.identifier, oldest, signing_key, keyblock)


def read_for(actor: Actor, patient: bytes, sequence: int, raw: bytes) -> tuple[models.Record, bytes]:
    """As a delegate, read a record with the keys that were handed over. Raises `InvalidInput`, `NotFound`, `ApiError`."""
    record = actor.client.record(patient, sequence)
    return record, open_record(actor.client, record, of_generation(take_keys(actor, patient, raw), record).reencryption)


def of_generation(taken: dict[int, TakenKeys], record: models.Record) -> TakenKeys:
    """Return the keys of a record's generation. Raises `InvalidInput`."""
    if record.generation not in taken:
        raise InvalidInput(
            f"record {record.sequence} is of generation {record.generation}, whose keys were not handed over; ask the patient"
        )
    return taken[record.generation]


decode_handovers = decoder(Handovers, MAX_HANDOVERS_BYTES)
"""Read a file that `hand_over_keys` made, without opening anything; raises `InvalidInput`."""
