# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain contract`: credits in contracts, and how contracts end."""

from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.access import actor, address_in, connect
from node.cli.contract_words import ContractArgument, KeyOption, contract_in
from node.cli.shell import JsonOption, NodeOption, PassphraseOption, TimeoutOption, emit, printable

if TYPE_CHECKING:
    from node.actions import Committed


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (fund, claim, freeze, close):
        app.command()(verb)


def fund(
    contract: ContractArgument,
    amount: Annotated[int, typer.Argument(help="Microcredits.", min=1, max=2**63 - 1, metavar="MICROCREDITS")],
    key: KeyOption,
    account: Annotated[
        str | None,
        typer.Option(help="Who may use them inside: address or key file; else the payer.", metavar="ACCOUNT"),
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Pay credits into a contract for an account. The operator must take the deposit up; what it has not when it ends comes back.

    Example: spchain contract fund 9f3c…07 100000 --key maria.json
    """
    del json_output
    from node.contract_actions import fund as pay_in

    with connect(node) as client:
        found = contract_in(client, contract)
        signer = actor(client, key, passphrase_file)
        target = signer.identity.address if account is None else address_in(account, "account")
        done = pay_in(signer, found.contract_id, target, amount, timeout)
    answer = {"account": target.hex(), "amount_microcredit": amount, **done.model_dump(mode="json")}
    emit(answer, lambda: typer.echo(f"paid {amount} microcredits in for {target.hex()} at height {done.height}"))


def claim(
    contract: ContractArgument,
    key: KeyOption,
    account: Annotated[
        str | None, typer.Option(help="Who is paid: address or key file; else the signer.", metavar="ACCOUNT")
    ] = None,
    bond: Annotated[
        bool, typer.Option("--bond", help="Have the bond of a settled contract paid back to its operator instead.")
    ] = False,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Have an account paid what a contract owes it: withdrawals of final batches, and once it has ended and is settled all the rest.

    Example: spchain contract claim 9f3c…07 --key maria.json
    """
    del json_output
    from node.contract_actions import claim as claim_all
    from node.contract_actions import release_bond

    with connect(node) as client:
        found = contract_in(client, contract)
        signer = actor(client, key, passphrase_file)
        if bond:
            _ended(
                release_bond(signer, found.contract_id, timeout),
                f"paid the bond back to {found.operator_address.hex()}",
            )
            return
        target = signer.identity.address if account is None else address_in(account, "account")
        done = claim_all(signer, found, target, timeout)
    text = f"paid {done.amount_microcredit} microcredits to {done.account.hex()}"
    emit(done.model_dump(mode="json"), lambda: typer.echo(f"{text} at height {done.heights[-1]}"))


def freeze(
    contract: ContractArgument,
    key: KeyOption,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """End a contract whose operator has left a forced request unanswered for too long; spchain contract show says from when on.

    Example: spchain contract freeze 9f3c…07 --key maria.json
    """
    del json_output
    from node.contract_actions import freeze as end

    with connect(node) as client:
        found = contract_in(client, contract)
        _ended(end(actor(client, key, passphrase_file), found.contract_id, timeout), "froze the contract")


def close(
    contract: ContractArgument,
    key: Annotated[str, typer.Option(help="Key file of the operator.", metavar="FILE")],
    at_once: Annotated[
        bool,
        typer.Option("--at-once", help="Do not go by way of the operator's node: what it has not committed is lost."),
    ] = False,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """As its operator, end a contract: its node takes no more requests, commits all that it has promised, then closes it.

    Balances and bond come back when it is settled.

    Example: spchain contract close 9f3c…07 --key hospital.json
    """
    del json_output
    from node.contract_actions import close as end
    from node.contract_actions import close_at_once

    with connect(node) as client:
        found = contract_in(client, contract)
        signer = actor(client, key, passphrase_file)
        height = (close_at_once if at_once else end)(signer, found.contract_id, timeout)
    emit({"height": height}, lambda: typer.echo(f"closed the contract at height {height}"))


def _ended(done: "Committed", text: str) -> None:
    emit(done.model_dump(mode="json"), lambda: typer.echo(printable(f"{text} at height {done.height}")))
