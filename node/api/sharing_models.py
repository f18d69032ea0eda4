# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API answers about sharing, labels, keys, guardians and emergencies, as types; see `node.api.models`."""

from typing import Literal

from node.api.models import Envelope, Hex, Model


class Proxy(Model):
    """One proxy of a grant."""

    address: Hex
    """The institution."""
    fragment_digest: Hex
    """Digest of its key fragment."""
    deleted_height: int | None
    """Height at which it confirmed that the fragment is deleted; null while it has not."""


class Grant(Model):
    """A grant as it is on the chain."""

    grant_id: Hex
    """Identifier: hash of its terms."""
    number: int
    """Place among the patient's grants."""
    patient: Hex
    """Whose records."""
    generation: int
    """Generation of the patient's keys."""
    grantee: Hex
    """Who may read."""
    receiving_key: Hex
    """The grantee's Umbral key that the fragments re-encrypt to."""
    verifying_key: Hex
    """Key that signed grant and fragments."""
    all_records: bool
    """Whether all records of the generation may be read, also later ones."""
    records: tuple[int, ...]
    """Sequence numbers that may be read; empty for all."""
    purposes: tuple[str, ...]
    """Purposes of use."""
    from_ms: int
    """Beginning, in milliseconds since 1970 (UTC)."""
    until_ms: int
    """End, exclusive, in milliseconds since 1970 (UTC)."""
    threshold: int
    """How many proxies must re-encrypt."""
    proxies: tuple[Proxy, ...]
    """The proxies, in the order of the terms."""
    emergency_approvals: int
    """0 for an ordinary grant; else it sleeps until so many proxies approve an emergency."""
    granted_height: int
    """Height of the microblock that committed it."""
    granted_timestamp_ms: int
    """Time of that microblock, in milliseconds since 1970 (UTC)."""
    revoked_height: int | None
    """Height of the revocation; null while there is none."""
    state: Literal["active", "asleep", "awake", "ended", "not yet", "revoked"]
    """What it is at the newest microblock."""


class Grants(Model):
    """A part of somebody's grants."""

    grants: tuple[Grant, ...]
    """In the order of the list that was asked for."""
    next_start: int | Hex | None
    """`start` of the next part; null at the end."""


class Permission(Model):
    """What a patient has permitted."""

    patient: Hex
    """Whose record."""
    record: Hex
    """Identifier of the record."""
    sequence: int
    """Place of the record."""
    number: int
    """Which label of the record."""
    institution: Hex
    """Who may label."""
    status: str
    """FHIR status that the record gets."""
    label: str
    """Why."""
    replaced_by: Hex
    """Identifier of the record that replaces this one; empty when there is none."""
    replacement_sequence: int
    """Place of that record in the patient's chain; 0 when there is none."""
    may_erase: bool
    """Whether nodes may erase the ciphertext."""
    expiry_height: int
    """Last height at which the label could commit."""


class Label(Model):
    """One label of a record."""

    permission: Permission
    """The patient's permission."""
    signer: Hex
    """Key that signed it."""
    signature: Hex
    """Signature of the permission."""
    previous: Envelope
    """The envelope before."""
    envelope: Envelope
    """The envelope after."""
    proof: Hex
    """Groth16 proof that the chameleon hash opens to the envelope after."""
    institution: Hex
    """Who labelled."""
    committed_height: int
    """Height of the microblock that committed it."""
    committed_timestamp_ms: int
    """Time of that microblock, in milliseconds since 1970 (UTC)."""


class Erasure(Model):
    """An institution's confirmation."""

    institution: Hex
    """Who holds the ciphertext no more."""
    height: int
    """Height of the microblock that committed the confirmation."""


class Labels(Model):
    """The history of a record."""

    labels: tuple[Label, ...]
    """In order."""
    erasures: tuple[Erasure, ...]
    """Who has confirmed that the ciphertext is erased."""


class KeyGeneration(Model):
    """One generation of a patient's keys."""

    generation: int
    """Which."""
    keyblock_hash: Hex
    """Hash of the keyblock."""
    signing_key: Hex
    """Key that signed for the patient."""
    reencryption_key: Hex
    """Umbral public key of its records."""
    chameleon_key: Hex
    """Public key of the chameleon hash of its records."""
    committed_height: int
    """Height of the microblock that committed it."""


class KeyGenerations(Model):
    """All keys that a patient has had."""

    generations: tuple[KeyGeneration, ...]
    """Oldest first."""


class Guardians(Model):
    """Who can give a patient new keys."""

    guardians: tuple[Hex, ...]
    """Their accounts."""
    needed: int
    """How many of them."""
    backup: Hex
    """Content address of the encrypted backup."""
    changed_height: int
    """Height at which they were appointed."""


class Delegation(Model):
    """What somebody may do for a patient."""

    delegate: Hex
    """Account of the delegate."""
    powers: tuple[str, ...]
    """What it may do; empty when the delegation was taken back."""
    until_ms: int
    """End, in milliseconds since 1970 (UTC)."""
    changed_height: int
    """Height at which it was last changed."""


class Delegations(Model):
    """All delegations of a patient."""

    delegations: tuple[Delegation, ...]
    """In the order of addresses."""


class Approval(Model):
    """One approval of an emergency."""

    institution: Hex
    """The proxy that approved."""
    height: int
    """Height of the microblock that committed it."""


class Emergency(Model):
    """An emergency access."""

    patient: Hex
    """Whose records."""
    number: int
    """Which of the patient's emergencies."""
    grant_id: Hex
    """The sleeping grant."""
    requester: Hex
    """Who asked."""
    reason: str
    """Why."""
    opened_height: int
    """Height of the microblock that committed the request."""
    opened_timestamp_ms: int
    """Time of that microblock, in milliseconds since 1970 (UTC)."""
    until_ms: int
    """End, in milliseconds since 1970 (UTC)."""
    approvals: tuple[Approval, ...]
    """Who has approved."""
    needed: int
    """How many must."""
    verdict: str
    """The patient's review; empty while there is none."""
    reviewed_height: int
    """Height of the review; 0 while there is none."""
    is_awake: bool
    """Whether it opens its grant at the newest microblock."""


class Emergencies(Model):
    """A part of the emergency accesses."""

    emergencies: tuple[Emergency, ...]
    """In order."""
    next_start: int | Hex | None
    """`start` of the next part; null at the end."""


class Answer(Model):
    """What a proxy said; the caller verifies it."""

    proxy: Hex
    """The proxy."""
    reason: str
    """Empty when `body` is what was asked for; else why not."""
    detail: str
    """What was wrong and what to do."""
    body: Hex
    """What was asked for: a receipt, a re-encryption answer, a page of the access log."""


class Answers(Model):
    """What proxies said."""

    answers: tuple[Answer, ...]
    """One for each that was asked."""
