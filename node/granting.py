# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a patient wishes to the grants that it takes: one for each generation of keys, with proxies drawn or chosen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ledger.crypto.reencryption import ReencryptionKey
from ledger.errors import InvalidInput
from node.actions import DEFAULT_TIMEOUT_S, Actor
from node.delegation_actions import take_keys
from node.parties import encryption_key, keyblocks
from node.sharing_actions import Given, choose_proxies, give
from records.grants import GrantChoice, check_choice

Keep = Callable[[bytes, tuple[bytes, ...]], None]
"""Is told a grant's identifier and sealed fragments before they are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody wants to grant."""

    patient: bytes | None
    """For whom; None for oneself."""
    grantee: bytes
    """Who may read."""
    records: tuple[int, ...] | None
    """Which records; None for all, also later ones."""
    purposes: tuple[str, ...]
    """Codes of `ledger.sharing.PURPOSES`."""
    from_ms: int
    """Beginning, in milliseconds since 1970 (UTC)."""
    until_ms: int
    """End, in milliseconds since 1970 (UTC)."""
    threshold: int
    """How many proxies must re-encrypt."""
    draw: int
    """How many proxies to draw when none are chosen."""
    proxies: tuple[bytes, ...] | None
    """The proxies, or None to have them drawn."""
    emergency_approvals: int = 0
    """Above 0 for a sleeping grant."""


def give_all(
    actor: Actor, wish: Wish, handover: bytes | None, keep: Keep, timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[Given]:
    """As a patient, or a delegate with handed-over keys, give the grants that a wish takes, oldest generation first.

    Raises:
        InvalidInput: something that no node would accept, or keys that are not at hand.
        Rejection: the chain refuses.
    """
    patient = wish.patient or actor.keys.identifier
    keys = delegating_keys(actor, patient, handover)
    generations = _generations(actor, patient, wish.records)
    lacking = sorted(set(generations) - set(keys))
    if lacking:
        raise InvalidInput(f"the keys of generation {lacking[0]} of patient {patient.hex()} are not at hand")
    receiving_key = encryption_key(actor.client, wish.grantee)
    given: list[Given] = []
    for generation, records in generations.items():
        choice = GrantChoice(
            patient=patient,
            generation=generation,
            grantee=wish.grantee,
            receiving_key=receiving_key,
            records=records,
            purposes=wish.purposes,
            from_ms=wish.from_ms,
            until_ms=wish.until_ms,
            threshold=wish.threshold,
            proxies=wish.proxies or choose_proxies(actor.client, patient, wish.grantee, wish.draw),
            emergency_approvals=wish.emergency_approvals,
        )
        check_choice(choice)
        given.append(give(actor, keys[generation], choice, timeout_s, keep))
    return given


def delegating_keys(actor: Actor, patient: bytes, handover: bytes | None) -> Mapping[int, ReencryptionKey]:
    """Return a patient's re-encryption keys by generation, from the own key ring or from a hand-over. Raises `InvalidInput`."""
    if patient != actor.keys.identifier:
        if handover is None:
            raise InvalidInput(
                f"to grant for patient {patient.hex()} you need the keys that the patient hands over: --handover FILE "
                "(spchain delegate give makes it)"
            )
        return {generation: taken.reencryption for generation, taken in take_keys(actor, patient, handover).items()}
    return {
        generation: identity.reencryption
        for generation, keyblock in keyblocks(actor.client, patient).items()
        for identity in actor.keys.generations
        if identity.public.reencryption_key == keyblock.reencryption_key
    }


def _generations(actor: Actor, patient: bytes, records: tuple[int, ...] | None) -> dict[int, tuple[int, ...] | None]:
    """Return for each generation that is concerned which of its records are; None for all."""
    newest = actor.client.patient(patient).generation
    if records is None:
        if not newest:
            return {0: None}
        used = {record.generation for record in actor.client.records(patient)} | {newest}
        return dict.fromkeys(sorted(used))
    found: dict[int, tuple[int, ...] | None] = {}
    for sequence in sorted(set(records)):
        generation = actor.client.record(patient, sequence).generation if newest else 0
        found[generation] = (*(found.get(generation) or ()), sequence)
    return dict(sorted(found.items()))
