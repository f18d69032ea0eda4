# SPDX-License-Identifier: GPL-3.0-or-later
"""What accounts do: transfer credits, become an institution, report misbehaviour."""

from ledger.acts import Act, current_account
from ledger.bodies import RegisterInstitution, ReportMisbehaviour, Transfer
from ledger.errors import InvalidInput, Rejection, RejectionReason
from ledger.evidence import check_evidence
from ledger.miners import Offence
from ledger.state import ACCREDITATIONS, INSTITUTIONS, KEY_HOLDERS, MINERS, OFFENCES, Institution


def transfer(act: Act, body: Transfer) -> None:
    """Move credits; what is sent to a patient's identifier or former key reaches the newest key, never a lost one."""
    act.require_credits(body.amount_microcredit)
    act.pay(current_account(act.state, body.recipient), body.amount_microcredit)


def register_institution(act: Act, body: RegisterInstitution) -> None:
    """Make an accredited account an institution."""
    state, sender = act.state, act.sender
    if state.get(ACCREDITATIONS, sender) is None:
        raise Rejection(
            RejectionReason.NOT_ACCREDITED,
            f"account {sender.hex()} is not accredited on this network; use one of those that its genesis accredits",
        )
    if state.get(INSTITUTIONS, sender) is not None:
        raise Rejection(RejectionReason.INSTITUTION_EXISTS, f"institution {sender.hex()} is registered already")
    if state.get(KEY_HOLDERS, sender) is not None:
        raise Rejection(RejectionReason.PATIENT_EXISTS, f"account {sender.hex()} is a patient; use another key")
    entry = Institution(body.name, body.country, act.public_key, body.encryption_key, act.context.height)
    state.put(INSTITUTIONS, sender, entry)


def report_misbehaviour(act: Act, body: ReportMisbehaviour) -> Rejection | None:
    """Note an offence that the evidence proves; evidence that proves nothing costs the sender a penalty."""
    state, context = act.state, act.context
    offender, penalty = body.evidence.offender, context.parameters.false_evidence_microcredit
    # Before the signatures: a sender who could not pay for a lie would have them checked for nothing.
    act.require_credits(penalty, ", the penalty for false evidence")
    known = state.get(OFFENCES, offender)
    if known is not None:
        detail = f"miner {offender.hex()} was reported at height {known.height} already"
        raise Rejection(RejectionReason.ALREADY_PUNISHED, detail)
    miner = state.get(MINERS, offender)
    try:
        if miner is None:
            raise InvalidInput(f"evidence: {offender.hex()} is no miner of this chain")
        guilt = check_evidence(context.chain_id, body.evidence)
    except InvalidInput as error:
        act.lose(penalty)
        return Rejection(RejectionReason.FALSE_EVIDENCE, str(error))
    state.put(OFFENCES, offender, Offence(context.height, guilt.epoch, guilt.round, act.sender, None))
    return None
