# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain contract`: contracts and machines. Other verbs: `contract_requests`, `contract_credits`, `contract_proofs`."""

import json
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli import contract_credits, contract_proofs, contract_requests
from node.cli.access import Names, actor, address_in, connect
from node.cli.contract_words import ContractArgument, contract_in, cost_facts, json_in
from node.cli.shell import (
    JsonOption,
    NodeOption,
    PassphraseOption,
    TimeoutOption,
    emit,
    facts,
    moment,
    note,
    table,
    warn,
)

if TYPE_CHECKING:
    from node.api.contract_models import Contract, ContractAccount, ContractWatch
    from node.machine_docs import MachineDoc, StructDoc

app = typer.Typer(
    help="Off-chain contracts: operations are executed by an operator, and committed in batches that anybody can check.",
    no_args_is_help=True,
)
for part in (contract_requests, contract_credits, contract_proofs):
    part.add_to(app)


@app.command("list")
def list_(node: NodeOption = None, json_output: JsonOption = False) -> None:
    """List all contracts.

    Example: spchain contract list
    """
    del json_output
    with connect(node) as client:
        found = list(client.contracts.contracts())
        names = Names(client)
        rows = [
            (
                each.contract_id.hex(),
                f"{each.machine} {each.version}",
                each.status + (", settled" if each.is_settled else ""),
                f"{each.final_count} of {each.batch_count}",
                each.bond_microcredit,
                names(each.operator_address),
            )
            for each in found
        ]
    columns = ("CONTRACT", "MACHINE", "STATUS", "FINAL", "BOND", "OPERATOR")
    emit([each.model_dump(mode="json") for each in found], lambda: table(columns, rows, "no contracts yet"))


@app.command()
def machines(
    name: Annotated[str | None, typer.Argument(help="Only this machine.", metavar="MACHINE")] = None,
    json_output: JsonOption = False,
) -> None:
    """List the machines that contracts can run, with their operations and how to write these as JSON. Asks no node.

    Example: spchain contract machines micro_fees
    """
    del json_output
    from contracts.shipped import MACHINES
    from node.contract_actions import machine_named
    from node.machine_docs import machine_doc

    chosen = MACHINES.machines if name is None else (machine_named(name),)
    docs = [machine_doc(each) for each in chosen]
    emit([doc.model_dump(mode="json") for doc in docs], lambda: _show_machines(docs))


def _show_machines(docs: "list[MachineDoc]") -> None:
    for place, doc in enumerate(docs):
        if place:
            typer.echo()
        typer.secho(f"{doc.name} {doc.version}", fg="cyan", bold=True)
        typer.echo(f"  {doc.meaning}")
        if doc.takes_deposits:
            typer.echo("  Accounts hold credits in it: spchain contract fund.")
        _show_struct(doc.parameters, "parameters, to open one")
        for operation in doc.operations:
            _show_struct(operation, f'operation {{"{operation.name}": {{…}}}}')
        typer.echo(f"  state keys: {', '.join(doc.state_keys)}")


def _show_struct(doc: "StructDoc", heading: str) -> None:
    typer.echo(f"  {typer.style(heading, fg='cyan')}: {doc.meaning}")
    for field in doc.fields:
        typer.echo(f"    {field.name}: {field.takes}. {field.meaning}")


@app.command("open")
def open_(
    machine: Annotated[str, typer.Argument(help="Name of the machine.", metavar="MACHINE")],
    parameters: Annotated[
        str, typer.Argument(help="The machine's parameters as JSON, @FILE, or - for standard input.", metavar="JSON")
    ],
    key: Annotated[str, typer.Option(help="Key file of the operator, as its node runs with.", metavar="FILE")],
    bond: Annotated[
        int | None,
        typer.Option(help="What fraud would burn, in microcredits; else the smallest allowed.", min=0, max=2**63 - 1),
    ] = None,
    version: Annotated[int | None, typer.Option(help="Version of the machine; else the newest.", min=1)] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Open a contract that your node operates, and leave a bond that answers for it.

    Example: spchain contract open micro_fees '{"largest_payment_microcredit": 10000}' --key hospital.json
    """
    del json_output
    from contracts.json_form import parameters_from_json
    from node.contract_actions import machine_named, minimum_bond, open_contract

    chosen = machine_named(machine, version)
    encoded = parameters_from_json(chosen, json_in(parameters, "parameters"))
    with connect(node) as client:
        signer = actor(client, key, passphrase_file)
        amount = minimum_bond(signer) if bond is None else bond
        done = open_contract(signer, chosen, encoded, amount, timeout)
        if client.status().address != signer.identity.address:
            warn(f"this node has another key; requests are served only while a node runs with {key}")
    answer = {**done.model_dump(mode="json"), "bond_microcredit": amount}
    emit(answer, lambda: typer.echo(f"opened contract {done.contract_id.hex()} at height {done.height}"))


@app.command()
def show(
    contract: ContractArgument,
    account: Annotated[
        str | None,
        typer.Option(help="Also show this account inside the contract: address or key file.", metavar="ACCOUNT"),
    ] = None,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a contract: how it stands, what secures it, what it owes, what an operation costs, and who pays.

    Example: spchain contract show 9f3c…07 --account maria.json
    """
    del json_output
    with connect(node) as client:
        found = contract_in(client, contract)
        cost = client.contracts.cost(found.contract_id)
        watch = client.contracts.watch(found.contract_id)
        inside = None
        if account is not None:
            inside = client.contracts.account(found.contract_id, address_in(account, "account"), credits_wanted=True)
        operator = Names(client)(found.operator_address)
    answer = {
        **found.model_dump(mode="json"),
        "cost": cost.model_dump(mode="json"),
        "watch": watch.model_dump(mode="json"),
        "account": None if inside is None else inside.model_dump(mode="json"),
    }

    def human() -> None:
        facts({**_contract_facts(found, operator), "watched": _watched(watch), **cost_facts(cost)})
        if inside is not None:
            typer.echo()
            facts(_account_facts(found, inside))

    emit(answer, human)


def _contract_facts(found: "Contract", operator: str) -> dict[str, object]:
    pending = found.batch_count - found.final_count
    return {
        "contract": found.contract_id.hex(),
        "machine": f"{found.machine} {found.version}" + ("" if found.is_known else ", unknown to this node"),
        "parameters": json.dumps(found.parameters),
        "operator": f"{operator}, key {found.operator.hex()}",
        "status": found.explanation,
        "opened": f"at height {found.opened_height}",
        "bond": f"{found.bond_microcredit} microcredits",
        "owes": f"{found.escrow_microcredit} microcredits to accounts" if found.takes_deposits else "takes no deposits",
        "batches": (
            f"{found.final_count} final, {pending} pending: each for {found.window_microblocks} microblocks, "
            "in which anybody can challenge it"
        ),
        "forced": f"{found.answered_count} of {found.forced_count} answered",
    }


def _watched(watch: "ContractWatch") -> str:
    if not watch.is_watched:
        return "not by this node"
    if watch.fault:
        return f"guilty: {watch.fault}"
    return f"{watch.batches} batches executed again and right; {watch.stage}" + (
        f" ({watch.detail})" if watch.detail else ""
    )


def _account_facts(contract: "Contract", inside: "ContractAccount") -> dict[str, object]:
    unknown = "the operator cannot be asked" if contract.status == "open" else "none: the contract has ended"
    found: dict[str, object] = {
        "account": inside.account.hex(),
        "next operation": unknown if inside.next_sequence is None else inside.next_sequence,
    }
    if inside.batch is not None:
        held = f"{inside.balance_microcredit} microcredits at batch {inside.batch}, the newest final one"
        found["holds"] = held + (", which were paid out" if inside.is_settled else "")
        found["withdrawn"] = (
            f"{inside.withdrawn_microcredit} microcredits, {inside.claimed_microcredit} of them paid out"
        )
        found["can claim"] = f"{inside.owed_microcredit} microcredits now"
    elif contract.takes_deposits:
        why = "nobody here can execute its batches" if contract.final_count else "no batch is final yet"
        found["holds"] = f"not known: {why}"
    return found


@app.command()
def batches(
    contract: ContractArgument,
    start: Annotated[
        int | None, typer.Option("--from", help="First batch wanted; else the newest are shown.", min=0)
    ] = None,
    limit: Annotated[int, typer.Option(help="Most batches wanted.", min=1)] = 100,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """List a contract's batches: pending while anybody can challenge them, then final.

    Example: spchain contract batches 9f3c…07 --from 120
    """
    del json_output
    with connect(node) as client:
        whole = contract_in(client, contract)
        first = max(0, whole.batch_count - limit) if start is None else start
        found = list(islice(client.contracts.batches(whole.contract_id, first), limit))
    rows = [
        (
            each.number,
            each.status,
            each.height,
            each.final_height,
            each.requests,
            each.operations,
            each.forced,
            each.data_bytes,
            moment(each.until_ms),
        )
        for each in found
    ]
    columns = ("BATCH", "STATUS", "HEIGHT", "FINAL AT", "REQUESTS", "OPERATIONS", "FORCED", "DATA", "UNTIL")
    emit([each.model_dump(mode="json") for each in found], lambda: table(columns, rows, "no batches there"))
    if found and len(found) < whole.batch_count:
        note(f"{len(found)} of {whole.batch_count} batches; see --from and --limit for the others")
