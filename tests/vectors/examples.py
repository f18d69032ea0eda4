# SPDX-License-Identifier: GPL-3.0-or-later
"""One microblock with every kind of transaction, each of which takes effect: the examples of the golden vectors."""

from collections import defaultdict

import msgspec

from ledger import testing
from ledger.bodies import (
    AppointGuardians,
    ApproveEmergency,
    AuthoriseAuthor,
    Body,
    ConfirmDeletion,
    ConfirmErasure,
    DelegatePowers,
    GrantAccess,
    OpenEmergency,
    RegisterInstitution,
    RegisterPatient,
    ReportMisbehaviour,
    ReviewEmergency,
    RevokeAccess,
    Transfer,
)
from ledger.crypto.keys import PrivateKey
from ledger.genesis import chain_id
from ledger.patients import patient_keyblock_signing_digest
from ledger.sharing import grant_id
from ledger.testing_patients import backup_digest, change_keys, grant_terms, label, next_keyblock, permission

GENESIS = testing.genesis()
CHAIN = chain_id(GENESIS)
MEMBER, PATIENT, NEW_KEY = testing.key(0), testing.key(20), testing.key(30)
OTHERS = [testing.key(number) for number in (1, 2, 3)]
KEYBLOCK = testing.patient_keyblock(PATIENT, MEMBER.address)
SECOND_KEYBLOCK = next_keyblock(KEYBLOCK, NEW_KEY, 30)
RECORD = testing.record_body(MEMBER.address, KEYBLOCK)
UNTIL_MS = testing.GENESIS_TIMESTAMP_MS + 60_000
PERMISSION = msgspec.structs.replace(permission(RECORD, MEMBER.address), may_erase=True)
PROOF = bytes.fromhex(
    "0a43f1a4a3d2e557bd22dc3015a9b11e9624a8e5bec11b6522cb0a8723d2f9042b811b8db91f05531931abbdaea2d20ed21e"
    "31c21f167d2bd7012a319084ce3d2c761e5c9c0b7a6942a1c69dd46a16e2570f291c1769fc89162f37669d6239be0bda99c1"
    "4f133cb890bfab6a78c1300a72441c0a3783ba9bfeb8b1d7c9d7830425888a8a1406606116765f78243d27035277a1e7f57e"
    "39a41a588251f2df795117bc7e23fb9bb96ea80ff8eb93e0bc2d5acb2f2346735c84a22b796242dc84960505b5f857128423"
    "89b682fe52b11350486c3a0553cc05011f11ab4938f22b9c2c01ffc0bc6d503f088151ff07bf15503a1c6fa19da24ca7347a"
    "af9f5f4fcd40"
)
"""Proofs are drawn at random; this one was made once, with the development key."""
TERMS = msgspec.structs.replace(
    grant_terms(
        PATIENT.address,
        OTHERS[0].address,
        testing.encryption_key(0),
        [key.address for key in (MEMBER, OTHERS[1], OTHERS[2])],
    ),
    emergency_approvals=2,
    purposes=("ETREAT", "TREAT"),
)
GRANT_ID = grant_id(TERMS)
GUARDIANS = OTHERS[:2]


def _registration() -> RegisterPatient:
    return RegisterPatient(KEYBLOCK, PATIENT.sign(patient_keyblock_signing_digest(CHAIN, KEYBLOCK)), 10**6)


STEPS: list[tuple[PrivateKey, Body]] = [
    (MEMBER, RegisterInstitution("Hospital", "AT", testing.encryption_key(0))),
    (MEMBER, _registration()),
    *((key, RegisterInstitution("Krankenhaus Süd", "AT", testing.encryption_key(0))) for key in OTHERS),
    (PATIENT, AuthoriseAuthor(PATIENT.address, OTHERS[0].address, allowed=True)),
    (MEMBER, RECORD),
    (testing.key(5), Transfer(testing.key(6).address, 2**39)),
    (testing.key(5), ReportMisbehaviour(testing.votes_evidence(CHAIN, 1))),
    (testing.key(6), ReportMisbehaviour(testing.microblocks_evidence(CHAIN, 2))),
    (PATIENT, GrantAccess(TERMS)),
    (OTHERS[0], OpenEmergency(GRANT_ID, "stroke", UNTIL_MS)),
    (OTHERS[1], ApproveEmergency(PATIENT.address, 0)),
    (MEMBER, ApproveEmergency(PATIENT.address, 0)),
    (PATIENT, ReviewEmergency(PATIENT.address, 0, is_justified=False)),
    (PATIENT, RevokeAccess(GRANT_ID)),
    (OTHERS[1], ConfirmDeletion(GRANT_ID)),
    (MEMBER, label(CHAIN, RECORD, KEYBLOCK, PERMISSION, PATIENT, PROOF)),
    (OTHERS[2], ConfirmErasure(PATIENT.address, 0)),
    (PATIENT, AppointGuardians(PATIENT.address, tuple(sorted(key.address for key in GUARDIANS)), 2, backup_digest())),
    (PATIENT, DelegatePowers(PATIENT.address, testing.key(7).address, ("grant", "revoke"), UNTIL_MS)),
    (testing.key(5), change_keys(CHAIN, SECOND_KEYBLOCK, NEW_KEY, GUARDIANS)),
]
"""Who does what, in the order of execution."""


def _signed() -> tuple[bytes, ...]:
    nonces: dict[bytes, int] = defaultdict(int)
    raws = []
    for key, body in STEPS:
        raws.append(testing.signed(CHAIN, key, body, nonces[key.address]))
        nonces[key.address] += 1
    return tuple(raws)


RAW = _signed()
SENDERS = tuple(key for key, _ in STEPS)
