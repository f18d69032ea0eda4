# SPDX-License-Identifier: GPL-3.0-or-later
"""`spchain status`, `transfer`, `block` and `tx`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from ledger.errors import InvalidInput
from node.cli.access import actor, address_in, connect, digest_in
from node.cli.explained import counted
from node.cli.shell import JsonOption, NodeOption, PassphraseOption, TimeoutOption, emit, facts, moment, table

block_app = typer.Typer(help="Look at blocks.", no_args_is_help=True)
tx_app = typer.Typer(help="Look at transactions, and submit signed ones.", no_args_is_help=True)

MAX_HEX_FILE_BYTES = 128 * 1024
"""A transaction has at most 49 KiB, twice that in hexadecimal."""


def add_to(root: typer.Typer) -> None:
    """Add the verbs that belong to no group."""
    root.command()(status)
    root.command()(transfer)


def status(node: NodeOption = None, json_output: JsonOption = False) -> None:
    """Show how a node is: height, committee, peers, load.

    Example: spchain status --node http://127.0.0.1:8080
    """
    del json_output
    with connect(node) as client:
        found = client.status()

    def human() -> None:
        facts(
            {
                "node": f"{found.node} ({found.address.hex()})",
                "network": f"{found.network} ({found.chain_id.hex()})",
                "version": found.version,
                "api": client.url,
                "peer id": found.peer_id,
                "height": f"{found.height} (round {found.round}, term {found.term}, epoch {found.epoch})",
                "block": found.block_hash.hex(),
                # As `checkpoint` of a configuration takes it.
                "keyblock": f"{found.epoch}:{found.keyblock.hex()}" if found.epoch else "none yet",
                "state digest": found.state_digest.hex(),
                "leader": found.leader.hex(),
                "committee": counted(found.committee_size, "member") + ("" if found.is_member else ", not this node"),
                "committed": f"{found.transactions} transactions, {found.records} records",
                "waiting": f"{found.mempool_transactions} transactions, {found.pending_batches} batches",
                "catching up": found.joining or ("yes" if found.synchronising else "no"),
                "agreement": found.agreement,
                "storage": found.storage,
                "access log": found.access_log,
                "off-chain": f"contracts: {found.offchain.operated} operated, {found.offchain.watched} watched; "
                f"{found.offchain.data_bytes} bytes of data ({found.offchain.data})",
                "started": moment(found.started_ms),
            }
        )
        for alarm in found.offchain.alarms:
            facts({"attention": alarm})
        rows = [
            (peer.name, peer.peer_id, "–" if peer.latency_ms is None else f"{peer.latency_ms:.1f} ms", peer.score)
            for peer in found.peers
        ]
        table(("PEER", "PEER ID", "LATENCY", "PENALTY"), rows, "no peers")

    emit(found.model_dump(mode="json"), human)


def transfer(
    recipient: Annotated[str, typer.Argument(help="Address or key file that receives.", metavar="RECIPIENT")],
    amount: Annotated[int, typer.Argument(help="Microcredits.", min=0, max=2**63 - 1, metavar="MICROCREDITS")],
    key: Annotated[str, typer.Option(help="Key file that pays.", metavar="FILE")],
    fee: Annotated[
        int | None, typer.Option(help="Fee in microcredits; else the smallest.", min=0, max=2**63 - 1)
    ] = None,
    passphrase_file: PassphraseOption = None,
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Move credits to another account.

    Example: spchain transfer 0123…cdef 1000000 --key hospital.json
    """
    del json_output
    target = address_in(recipient, "recipient")
    with connect(node) as client:
        signer = actor(client, key, passphrase_file, fee)
        committed = signer.transfer(target, amount, timeout)
    answer = {
        "sender": signer.identity.address.hex(),
        "recipient": target.hex(),
        "amount_microcredit": amount,
        "transaction_id": committed.id.hex(),
        "height": committed.height,
    }
    emit(answer, lambda: typer.echo(f"moved {amount} microcredits to {target.hex()} at height {committed.height}"))


@block_app.command("show")
def block_show(
    reference: Annotated[str, typer.Argument(help="Height, hash or latest.", metavar="BLOCK")] = "latest",
    transactions: Annotated[bool, typer.Option("--transactions", help="List its first 1000 transactions.")] = False,
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a committed microblock.

    Example: spchain block show 17 --transactions
    """
    del json_output
    if not re.fullmatch(r"latest|[0-9]{1,19}|[0-9a-fA-F]{64}", reference):
        raise InvalidInput(f"block {reference!r} is neither a height nor a hash of 64 hexadecimal digits nor 'latest'")
    with connect(node) as client:
        found = client.block(reference)
        listed = client.block_transactions(found.height, limit=1000) if transactions else None
    document = found.model_dump(mode="json")
    if listed is not None:
        document["transactions"] = listed.model_dump(mode="json")["transactions"]

    def human() -> None:
        facts(
            {
                "height": found.height,
                "hash": found.block_hash.hex(),
                "parent": found.parent.hex(),
                "time": moment(found.timestamp_ms),
                "leader": found.leader.hex(),
                "round": f"{found.round} (term {found.term}, epoch {found.epoch})",
                "batches": len(found.batches),
                "state digest": found.state_digest.hex(),
                "certificate": f"{len(found.certificate)} bytes" if found.certificate else "none",
            }
        )
        if listed is not None:
            rows = [(item.position, item.id.hex(), item.reason or "ok") for item in listed.transactions]
            table(("POSITION", "TRANSACTION", "RESULT"), rows, "no transactions")

    emit(document, human)


@tx_app.command("show")
def tx_show(
    identifier: Annotated[str, typer.Argument(help="Transaction id.", metavar="ID")],
    node: NodeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a committed transaction: what it did, where, and whether it took effect.

    Example: spchain tx show 5f0c…
    """
    del json_output
    with connect(node) as client:
        found = client.transaction(digest_in(identifier, "transaction id"))

    def human() -> None:
        facts(
            {
                "id": found.id.hex(),
                "kind": found.kind,
                "result": found.receipt.reason or "took effect",
                "height": f"{found.receipt.height}, position {found.receipt.position}",
                "block": found.block_hash.hex(),
                "sender": found.sender.hex(),
                "nonce": found.nonce,
                "fee": f"{found.fee_microcredit} microcredits",
                **{name.replace("_", " "): value for name, value in found.body.items()},
            }
        )

    emit(found.model_dump(mode="json"), human)


@tx_app.command("submit")
def tx_submit(
    transactions: Annotated[
        list[str], typer.Argument(help="Signed transactions: hexadecimal, or files.", metavar="TX…")
    ],
    node: NodeOption = None,
    timeout: TimeoutOption = 60.0,
    json_output: JsonOption = False,
) -> None:
    """Submit transactions that were signed elsewhere, and wait until they take effect.

    Example: spchain tx submit signed.bin
    """
    del json_output
    from node.actions import submit_and_wait

    raws = [_raw(text) for text in transactions]
    with connect(node) as client:
        done = submit_and_wait(client, raws, timeout)
    rows = [(item.id.hex(), item.height) for item in done]
    emit([item.model_dump(mode="json") for item in done], lambda: table(("TRANSACTION", "HEIGHT"), rows, "nothing"))


def _raw(text: str) -> bytes:
    """Return a transaction given as hexadecimal or as a file of its bytes or of hexadecimal."""
    from node.files import is_there, read_file

    if re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text):
        return bytes.fromhex(text)
    if not is_there(Path(text).expanduser()):
        raise InvalidInput(f"transaction {text[:80]!r} is neither hexadecimal nor a file")
    content = read_file(Path(text).expanduser(), MAX_HEX_FILE_BYTES, "transaction file")
    stripped = content.strip()
    if re.fullmatch(rb"(?:[0-9a-fA-F]{2})+", stripped):
        return bytes.fromhex(stripped.decode())
    return content
