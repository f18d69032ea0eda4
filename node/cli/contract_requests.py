# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain contract`: operations, and how far they have come."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ledger.errors import InvalidInput, SpchainError
from node.cli.access import actor, address_in, connect
from node.cli.contract_words import (
    ContractArgument,
    ReceiptOption,
    brief,
    contract_in,
    cost_facts,
    json_in,
    receipt_in,
)
from node.cli.shell import JsonOption, NodeOption, PassphraseOption, TimeoutOption, emit, facts, note, table, warn

if TYPE_CHECKING:
    import msgspec

    from node.api.contract_models import Contract, RequestStatus
    from node.client import NodeClient
    from node.contract_requests import Goal, KeptAnswer, Prepared

OperationsArgument = Annotated[
    str,
    typer.Argument(
        help="One operation or a list of up to 64, as JSON, @FILE, or - for standard input.", metavar="OPERATIONS"
    ),
]
SequenceOption = Annotated[
    int | None,
    typer.Option(help="Number of the first operation among yours; else the operator is asked.", min=0, max=2**63 - 1),
]
GoalOption = Annotated[
    Literal["included", "committed", "final"] | None,
    typer.Option("--wait", help="Wait until the request is so far: included, committed or final."),
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (send, status, force):
        app.command()(verb)


def send(
    contract: ContractArgument,
    operations: OperationsArgument,
    key: Annotated[str, typer.Option(help="Key file of the sender.", metavar="FILE")],
    save: Annotated[
        str | None, typer.Option(help="Keep the operator's signed receipt in this file.", metavar="FILE")
    ] = None,
    guard: Annotated[
        bool,
        typer.Option("--guard", help="Also give the receipt to the node's watcher, which holds the operator to it."),
    ] = False,
    wait: GoalOption = None,
    sequence: SequenceOption = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Sign operations and have the contract's operator execute them, all in one request; free for the sender.

    The answer is the operator's signed receipt: whoever keeps it can hold the operator's bond against it.

    Example: spchain contract send 9f3c…07 '{"acknowledge": {"document": "77…aa"}}' --key maria.json
    """
    del json_output
    from node.contract_requests import prepare
    from node.contract_requests import send as bring

    if save is not None and Path(save).expanduser().exists():
        raise InvalidInput(f"{save} is there already; name another file for the receipt")
    with connect(node) as client:
        found = contract_in(client, contract)
        made = _operations(found, operations)
        signer = actor(client, key, passphrase_file)
        prepared = prepare(signer, found, made, sequence, timeout)
        answer = bring(client, signer.rules.chain_id, prepared, timeout)
        not_saved = None if save is None else _save(save, answer)
        place = answer.signed.receipt
        note(f"included at place {place.index} of batch {place.number}")
        if guard:
            _guard(client, answer)
        # It is done, and nobody may take it for undone: what fails from here on is told after the answer.
        status, failed = _status_after(client, prepared, wait, timeout)
    emit(_sent_json(prepared, answer, status), lambda: _show_sent(prepared, answer, status))
    for error in (not_saved, failed):
        if error is not None:
            raise error


def _operations(contract: "Contract", text: str) -> "list[msgspec.Struct]":
    from contracts.json_form import operations_from_json
    from node.contract_actions import machine_of

    return operations_from_json(machine_of(contract), json_in(text, "operations"))


def _save(file: str, answer: "KeptAnswer") -> SpchainError | None:
    from ledger.codec import encode
    from node.files import create_file

    try:
        create_file(Path(file).expanduser(), encode(answer), mode=0o600)
    except SpchainError as error:
        return error
    note(f"kept the receipt in {file}")
    return None


def _guard(client: "NodeClient", answer: "KeptAnswer") -> None:
    from ledger.codec import encode
    from node.http_client import ApiError, NodeUnreachable

    try:
        client.contracts.hold_receipt(answer.contract_id, encode(answer.signed))
    except (ApiError, NodeUnreachable) as error:
        warn(f"the node's watcher does not take the receipt, though the operations are done: {error}")


def _status_after(
    client: "NodeClient", prepared: "Prepared", goal: "Goal | None", timeout: float
) -> "tuple[RequestStatus | None, SpchainError | None]":
    """Return how a request stands that has its receipt, as far as it was seen, and what kept it from coming farther."""
    from node.contract_requests import wait_for

    contract_id, sender, number = prepared.contract.contract_id, prepared.sender, prepared.first_sequence
    seen: list[RequestStatus] = []

    def tell(status: "RequestStatus") -> None:
        seen.append(status)
        _tell(status)

    try:
        # The receipt is there, so it is included at once: this asks how it stands, and waits for more only when told.
        wait_for(lambda: client.contracts.status(contract_id, sender, number), goal or "included", timeout, tell)
    except SpchainError as error:
        return (seen[-1] if seen else None), error
    return seen[-1], None


def _tell(seen: "RequestStatus") -> None:
    note(f"{seen.status}: rests on {seen.rests_on}")


def _results(prepared: "Prepared", answer: "KeptAnswer") -> list[dict[str, object]]:
    from contracts.json_form import operation_to_json, result_to_json
    from contracts.reading import decode_outcomes

    outcomes = decode_outcomes(answer.outcomes)
    if len(outcomes) != len(prepared.operations):
        raise InvalidInput(f"the operator answers {len(prepared.operations)} operations with {len(outcomes)} outcomes")
    return [
        {
            "sequence": prepared.first_sequence + place,
            "operation": operation_to_json(operation),
            "is_done": outcome.is_done,
            "code": outcome.code,
            "result": result_to_json(outcome.result),
        }
        for place, (operation, outcome) in enumerate(zip(prepared.operations, outcomes, strict=True))
    ]


def _onchain_bytes(prepared: "Prepared", fee_microcredit: int) -> int:
    """Return the size of a transaction that would carry the largest of the operations alone."""
    from ledger.codec import encode
    from node.api.contract_scan import transaction_bytes

    largest = max(len(encode(operation)) for operation in prepared.operations)
    return transaction_bytes(largest, fee_microcredit)


def _sent_json(prepared: "Prepared", answer: "KeptAnswer", status: "RequestStatus | None") -> dict[str, object]:
    from ledger.codec import encode

    found: dict[str, object] = {
        "contract_id": prepared.contract.contract_id.hex(),
        "sender": prepared.sender.hex(),
        "first_sequence": prepared.first_sequence,
        "results": _results(prepared, answer),
        "receipt": encode(answer.signed).hex(),
    }
    if status is None:
        place = answer.signed.receipt
        return {**found, "status": "included", "batch": place.number, "index": place.index}
    size = _onchain_bytes(prepared, status.cost.onchain_fee_microcredit)
    return {**found, "onchain_bytes": size, **status.model_dump(mode="json")}


def _show_sent(prepared: "Prepared", answer: "KeptAnswer", status: "RequestStatus | None") -> None:
    rows = []
    for item in _results(prepared, answer):
        result = "done" if item["is_done"] else f"refused: {item['code']}"
        answered = "" if item["result"] is None else item["result"]
        rows.append((item["sequence"], brief(item["operation"]), result, answered))
    table(("NUMBER", "OPERATION", "OUTCOME", "ANSWER"), rows, "nothing was sent")
    if status is not None:
        typer.echo()
        size = _onchain_bytes(prepared, status.cost.onchain_fee_microcredit)
        facts({**_status_facts(status), **cost_facts(status.cost, size)})


def _status_facts(status: "RequestStatus") -> dict[str, object]:
    found: dict[str, object] = {"status": status.status, "rests on": status.rests_on}
    if status.batch is not None:
        found["batch"] = status.batch if status.index is None else f"{status.batch}, place {status.index}"
    if status.height is not None:
        found["committed"] = f"at height {status.height}, final at {status.final_height}"
    return found


def status(
    contract: ContractArgument,
    sender: Annotated[
        str | None, typer.Argument(help="Address or key file of who sent the operation.", metavar="SENDER")
    ] = None,
    number: Annotated[
        int | None, typer.Argument(help="The operation's number among the sender's.", min=0, metavar="NUMBER")
    ] = None,
    receipt: ReceiptOption = None,
    wait: GoalOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Tell how far an operation has come, what that rests on, and what it cost.

    By a receipt this needs the chain alone, and no word of the operator, also while it waits.

    Example: spchain contract status 9f3c…07 maria.json 12 --wait final
    """
    del json_output
    from node.contract_requests import check_answer, status_by_receipt, wait_for

    with connect(node) as client:
        found = contract_in(client, contract)
        account, sequence = who_sent(client, found, sender, number, receipt)
        kept = None if receipt is None else receipt_in(receipt)
        if kept is not None:
            check_answer(client.genesis().chain_id, found, kept)

        def look() -> "RequestStatus":
            if kept is not None:
                return status_by_receipt(client, found.contract_id, kept)
            return client.contracts.status(found.contract_id, account, sequence)

        now = look() if wait is None else wait_for(look, wait, timeout, _tell)
    answer = {"sender": account.hex(), "sequence": sequence, **now.model_dump(mode="json")}
    emit(answer, lambda: facts({**_status_facts(now), **cost_facts(now.cost)}))


def who_sent(
    client: "NodeClient", contract: "Contract", sender: str | None, number: int | None, receipt: str | None
) -> tuple[bytes, int]:
    """Return whose operation is meant, and its number."""
    if receipt is not None:
        from contracts.requests import check_request

        kept = receipt_in(receipt)
        request = check_request(client.genesis().chain_id, contract.contract_id, kept.request)
        return request.sender, request.first_sequence
    if sender is None or number is None:
        raise InvalidInput("name the operation by SENDER and NUMBER, or by --receipt")
    return address_in(sender, "sender"), number


def force(
    contract: ContractArgument,
    key: Annotated[str, typer.Option(help="Key file of the sender, who also pays the fee.", metavar="FILE")],
    operations: Annotated[
        str | None, typer.Argument(help="Operations, as for spchain contract send.", metavar="OPERATIONS")
    ] = None,
    receipt: ReceiptOption = None,
    sequence: SequenceOption = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Put operations on the chain, so that the operator must answer for them in one of its next batches, or anyone may freeze it.

    For operations that the operator ignores, or, with --receipt, for a request that it has promised and does not commit.

    Example: spchain contract force 9f3c…07 '{"withdraw": {"amount_microcredit": 500}}' --key maria.json --sequence 7
    """
    del json_output
    from ledger.offchain import request_digest
    from node.contract_requests import force as put
    from node.contract_requests import prepare

    if (operations is None) == (receipt is None):
        raise InvalidInput("name either OPERATIONS or --receipt")
    with connect(node) as client:
        found = contract_in(client, contract)
        made = None if operations is None else _operations(found, operations)
        signer = actor(client, key, passphrase_file)
        raw = receipt_in(str(receipt)).request if made is None else prepare(signer, found, made, sequence).raw
        done = put(signer, found.contract_id, raw, timeout)
    answer = {"request_digest": request_digest(raw).hex(), **done.model_dump(mode="json")}
    emit(
        answer, lambda: typer.echo(f"forced at height {done.height}; spchain contract show says what the operator owes")
    )
