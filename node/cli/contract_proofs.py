# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain contract`: what proves what a contract did, and what proves it wrong."""

from typing import TYPE_CHECKING, Annotated

import typer

from ledger.errors import InvalidInput
from node.cli.access import actor, connect
from node.cli.contract_requests import who_sent
from node.cli.contract_words import ContractArgument, KeyOption, ReceiptOption, contract_in, counting, receipt_in
from node.cli.proofs import WaitOption, export_claim
from node.cli.shell import JsonOption, NodeOption, OutputOption, PassphraseOption, TimeoutOption, emit, note

if TYPE_CHECKING:
    from node.api.contract_models import Contract
    from node.client import NodeClient
    from records.claims import Claim


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (proof, challenge):
        app.command()(verb)


def proof(
    contract: ContractArgument,
    output: OutputOption,
    sender: Annotated[
        str | None, typer.Argument(help="Address or key file of who sent the operation.", metavar="SENDER")
    ] = None,
    number: Annotated[
        int | None, typer.Argument(help="The operation's number among the sender's.", min=0, metavar="NUMBER")
    ] = None,
    receipt: ReceiptOption = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="Prove a value of the contract's state instead: a key as spchain contract machines names it.",
            metavar="KEY",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="With --state: at the end of this batch; else of the newest proved one, with --wait of the newest final one.",
            min=0,
        ),
    ] = None,
    wait: WaitOption = 0.0,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write evidence of what became of an operation, or of a value in the contract's state; see spchain verify.

    The batch must be final at the keyblock that proves it.

    Example: spchain contract proof 9f3c…07 maria.json 12 -o payment.evidence

    Example: spchain contract proof 9f3c…07 --state balance:0123…cdef -o balance.evidence
    """
    del json_output
    with connect(node) as client:
        found = contract_in(client, contract)
        claim = (
            _operation_claim(client, found, sender, number, receipt)
            if state is None
            else _value_claim(client, found, state, batch, waits=wait > 0)
        )
        export_claim(client, claim, output, wait)


def _operation_claim(
    client: "NodeClient", found: "Contract", sender: str | None, number: int | None, receipt: str | None
) -> "Claim":
    from node.actions import network_rules
    from node.contract_proving import operation_claim
    from node.contract_requests import check_answer

    chain_id = network_rules(client).chain_id
    kept = None if receipt is None else receipt_in(receipt)
    if kept is not None:
        check_answer(chain_id, found, kept)
        place = (kept.signed.receipt.number, kept.signed.receipt.index)
    else:
        now = client.contracts.status(found.contract_id, *who_sent(client, found, sender, number, None))
        if now.batch is None or now.index is None or now.height is None:
            raise InvalidInput(f"the operation is {now.status}, not committed; nothing proves it yet: {now.rests_on}")
        place = (now.batch, now.index)
    return operation_claim(client, chain_id, found, *place, kept, counting("executing again for the outcomes"))


def _value_claim(client: "NodeClient", found: "Contract", state: str, batch: int | None, *, waits: bool) -> "Claim":
    from contracts.json_form import key_from_text
    from node.contract_actions import machine_of
    from node.contract_proving import proved_count, value_claim

    key = key_from_text(machine_of(found), state)
    if batch is not None:
        return value_claim(client, found, batch, key)
    if not found.final_count:
        raise InvalidInput("no batch of the contract is final yet; wait for the first")
    # A busy contract's newest batch is final long before a keyblock proves it: who does not wait gets an older one.
    count = found.final_count if waits else proved_count(client, found)
    if not count:
        raise InvalidInput(
            "no batch of the contract is final at the newest keyblock yet; wait for the next ones: --wait"
        )
    return value_claim(client, found, count - 1, key)


def challenge(
    contract: ContractArgument,
    key: KeyOption,
    receipt: ReceiptOption = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Execute a contract's batches again from their published data, and prove to the chain what is wrong, if anything is.

    Begins with the newest state after a final batch that the node keeps, by the root that the chain has; else with the first batch.
    Costs nothing when nothing is wrong. A batch that is proved wrong within its window costs the operator its bond; half goes to you.

    Example: spchain contract challenge 9f3c…07 --key maria.json
    """
    del json_output
    from node.contract_proving import challenge as accuse
    from node.contract_proving import search
    from node.contract_requests import check_answer

    with connect(node) as client:
        found = contract_in(client, contract)
        signer = actor(client, key, passphrase_file)
        kept = None if receipt is None else receipt_in(receipt)
        if kept is not None:
            check_answer(signer.rules.chain_id, found, kept)
            promised = kept.signed.receipt.number
            if promised >= found.batch_count:
                note(
                    f"the receipt is about batch {promised}, which does not count (yet): nothing can be held against it"
                )
        searched = search(client, signer.rules.chain_id, found, kept, counting("executing again"))
        wrong = searched.wrong
        if wrong is None:
            text = f"nothing wrong found in {searched.count} batches"
            text += f" from batch {searched.first} on; those before are final" if searched.first else ""
            right = {"is_wrong": False, "first_batch": searched.first, "batches": searched.count}
            emit(right, lambda: typer.echo(text))
            return
        kind = type(wrong.proof).__name__
        note(f"batch {wrong.batch.number} is wrong ({kind})")
        if wrong.batch.status == "final":
            raise InvalidInput(
                f"batch {wrong.batch.number} is wrong, but final since height {wrong.batch.final_height}: too late to challenge it"
            )
        done = accuse(signer, wrong, timeout)
    answer = {"is_wrong": True, "batch": wrong.batch.number, "kind": kind, **done.model_dump(mode="json")}
    emit(
        answer,
        lambda: typer.echo(
            f"batch {wrong.batch.number} was proved wrong at height {done.height}; the contract is frozen"
        ),
    )
