# SPDX-License-Identifier: GPL-3.0-or-later
"""The walks of claims about grants: which entries they need, what these prove, and what they do not."""

from collections.abc import Sequence

from ledger.crypto.keys import address_of
from ledger.emergency import Emergency, is_approved
from ledger.sharing import Grant, GrantTerms, grant_id
from ledger.state import EMERGENCIES, GRANTS, INSTITUTIONS, KEY_GENERATIONS, PATIENTS, Institution, numbered_key
from records.access_entries import AccessEntry, entry_hash, is_entry_signed
from records.claims import (
    AccessClaim,
    EvidenceRefused,
    Fault,
    Found,
    GrantClaim,
    Moment,
    RevocationClaim,
    Scene,
    Walk,
    counted,
    entries,
    entry,
    need,
    present,
    require,
    when,
)
from records.requests import RefusalReason

_MAX_LISTED = 16
"""Records that a sentence names one by one."""


def walk_grant(_scene: Scene, claim: GrantClaim, moment: Moment) -> Walk[Found]:
    """Check that a patient made a grant, and how it stands."""
    found, proxies, proven = yield from read_grant(claim.grant_id)
    emergency: Emergency | None = None
    if found.emergency_count:
        key = numbered_key(found.terms.patient, found.newest_emergency)
        emergency = yield from present(EMERGENCIES, key, f"emergency {found.newest_emergency} of the patient")
        require(emergency.grant_id == claim.grant_id, "the emergency is of another grant")
        proven = (*proven, *_emergency_words(found, emergency))
    if found.revoked_height:
        proven = (*proven, f"the patient revoked the grant in microblock {found.revoked_height}")
    else:
        proven = (*proven, f"the grant was not revoked up to microblock {moment.height}")
    return Found(
        proven=proven,
        not_proven=(
            "that anybody has read anything: export access for that",
            "whether the grant was revoked later",
            *_unseen(moment),
        ),
        facts={"grant": found, "proxies": proxies, "emergency": emergency},
    )


def walk_revocation(_scene: Scene, claim: RevocationClaim, moment: Moment) -> Walk[Found]:
    """Check that a patient has revoked a grant, and which proxies have confirmed the deletion."""
    found, proxies, proven = yield from read_grant(claim.grant_id)
    if not found.revoked_height:
        detail = f"grant {claim.grant_id.hex()} was not revoked up to microblock {moment.height}"
        raise EvidenceRefused(Fault.NOT_SO, f"{detail}; what was committed lately is there after two more keyblocks")
    words = [
        f"the grant was revoked in microblock {found.revoked_height}; from then on no honest proxy re-encrypts for it"
    ]
    for address, proxy, height in zip(found.terms.proxies, proxies, found.deletions, strict=True):
        name = f"proxy {proxy.name!r} ({address.hex()})"
        if height:
            words.append(f"{name} has confirmed, in microblock {height}, that its key fragment is deleted")
        else:
            words.append(
                f"{name} has not confirmed, up to microblock {moment.height}, that its key fragment is deleted"
            )
    return Found(
        proven=(*proven, *words),
        not_proven=(
            "that no copy of a key fragment is left: a confirmation is the proxy's word",
            "that what was read before is forgotten",
            *_unseen(moment),
        ),
        facts={"grant": found, "proxies": proxies},
    )


def walk_access(scene: Scene, claim: AccessClaim, moment: Moment) -> Walk[Found]:
    """Check who asked which proxy for what, and what the proxy answered, by the proxies' signed logs."""
    found, proxies, proven = yield from read_grant(claim.grant_id)
    by_address = dict(zip(found.terms.proxies, proxies, strict=True))
    before: AccessEntry | None = None
    words: list[str] = []
    for signed in claim.entries:
        item = signed.entry
        about = (item.grant_id, item.patient) == (claim.grant_id, found.terms.patient)
        require(about, f"entry {item.number} of proxy {item.proxy.hex()} is about something else")
        proxy = by_address.get(item.proxy)
        if proxy is None:
            raise EvidenceRefused(Fault.CONTRADICTION, f"{item.proxy.hex()} is no proxy of the grant")
        if not is_entry_signed(scene.chain.id, signed, proxy.public_key):
            detail = f"entry {item.number} is not signed by proxy {item.proxy.hex()} for this chain"
            raise EvidenceRefused(Fault.BAD_SIGNATURE, detail)
        if before is not None:
            rises = (before.proxy, before.number) < (item.proxy, item.number)
            require(rises, "entries must stand by proxy and number, each once")
            _check_follows(before, item)
        before = item
        words.append(_access_words(item, proxy, found))
    return Found(
        proven=(*proven, *words),
        not_proven=(
            "that these are all answers: a proxy's log may have more, which the patient can ask it for",
            "that a proxy's clock was right: times of entries are its own word",
            "that the grantee has read what was re-encrypted for it",
            *_unseen(moment),
        ),
        facts={"grant": found, "proxies": proxies, "entries": tuple(signed.entry for signed in claim.entries)},
    )


def _check_follows(before: AccessEntry, item: AccessEntry) -> None:
    """Check the links of two entries, where these follow each other in a log."""
    if before.proxy != item.proxy:
        return
    links = (
        (before.number, before.number + 1 == item.number, item.previous),
        (before.patient_number, before.patient_number + 1 == item.patient_number, item.patient_previous),
    )
    for number, is_next, previous in links:
        fits = not is_next or previous == entry_hash(before)
        require(fits, f"proxy {item.proxy.hex()} has signed two logs: entry {item.number} does not follow {number}")
    rises = before.patient_number < item.patient_number
    require(rises, f"proxy {item.proxy.hex()} has signed two logs: its entries about the patient do not rise")


def _access_words(item: AccessEntry, proxy: Institution, found: Grant) -> str:
    who = "the grantee" if address_of(item.requester) == found.terms.grantee else f"key {item.requester.hex()}"
    # Under these reasons the proxy has not looked at the signature, or it was wrong.
    asked = "in the name of" if item.reason in {RefusalReason.BAD_SIGNATURE, RefusalReason.CATCHING_UP} else "by"
    what = f"{_listed(item.records)} for {item.purpose}, asked for {asked} {who}, at {when(item.timestamp_ms)}"
    height = f"having committed microblock {item.head_height}"
    if item.reason is None:
        return f"proxy {proxy.name!r} re-encrypted {what}, {height}"
    return f"proxy {proxy.name!r} refused {what}, {height}, because: {item.reason}"


def read_grant(identifier: bytes) -> Walk[tuple[Grant, tuple[Institution, ...], tuple[str, ...]]]:
    """Return a grant, its proxies' institutions and what they prove."""
    found = yield from present(GRANTS, identifier, f"grant {identifier.hex()}")
    terms = found.terms
    require(grant_id(terms) == identifier, "the grant's identifier is not the hash of its terms")
    patient = yield from present(PATIENTS, terms.patient, f"patient {terms.patient.hex()}")
    require(found.number < patient.grant_count, "the patient's entry knows of fewer grants")
    key = numbered_key(terms.patient, terms.generation)
    generation = yield from present(KEY_GENERATIONS, key, f"key generation {terms.generation} of the patient")
    newest = patient.keyblock
    grantee = yield from _grantee(terms)
    rows = yield from entries(INSTITUTIONS, terms.proxies)
    proxies = tuple(need(row, f"institution {address.hex()}") for address, row in zip(terms.proxies, rows, strict=True))
    held = {generation.keyblock.signing_key: terms.generation, newest.signing_key: newest.generation}
    signer = held.get(found.verifying_key)
    by = "another key of the patient or a delegate's" if signer is None else f"the patient's of generation {signer}"
    names = ", ".join(f"{proxy.name!r}" for proxy in proxies)
    return (
        found,
        proxies,
        (
            (
                f"patient {terms.patient.hex()} let {grantee} read {_scope(terms)} for {', '.join(terms.purposes)}, from "
                f"{when(terms.from_ms)} to {when(terms.until_ms)}: grant {identifier.hex()}"
            ),
            (
                f"it was committed in microblock {found.granted_height} at {when(found.granted_timestamp_ms)}, signed with key "
                f"{found.verifying_key.hex()}, {by}"
            ),
            f"to read takes {terms.threshold} of {len(proxies)} proxies: {names}",
        ),
    )


def _grantee(terms: GrantTerms) -> Walk[str]:
    institution = yield from entry(INSTITUTIONS, terms.grantee)
    if institution is not None:
        return f"{institution.name!r} ({terms.grantee.hex()})"
    yield from present(PATIENTS, terms.grantee, f"institution or patient {terms.grantee.hex()}")
    return f"patient {terms.grantee.hex()}"


def _scope(terms: GrantTerms) -> str:
    if terms.all_records:
        return f"all records of key generation {terms.generation}"
    return _listed(terms.records)


def _listed(records: Sequence[int]) -> str:
    if len(records) == 1:
        return f"record {records[0]}"
    listed = ", ".join(map(str, records[:_MAX_LISTED]))
    more = len(records) - _MAX_LISTED
    return f"records {listed}" + (f" and {more} more" if more > 0 else "")


def _emergency_words(found: Grant, emergency: Emergency) -> tuple[str, ...]:
    approvals = f"{counted(len(emergency.approvals), 'approval')} of {emergency.needed} needed"
    times = "one emergency" if found.emergency_count == 1 else f"{found.emergency_count} emergencies"
    verdict = (
        f"; the patient called it {emergency.verdict}" if emergency.verdict else "; the patient has not reviewed it"
    )
    return (
        f"the grant sleeps, and was to be woken by {times}",
        (
            f"the newest was asked for because of {emergency.reason!r} at {when(emergency.opened_timestamp_ms)}, until "
            f"{when(emergency.until_ms)}: {approvals}, {'awake' if is_approved(emergency) else 'not woken'}{verdict}"
        ),
    )


def _unseen(moment: Moment) -> tuple[str, ...]:
    return (f"anything that was committed after microblock {moment.height}",)
