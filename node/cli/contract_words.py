# SPDX-License-Identifier: GPL-3.0-or-later
"""What the verbs about contracts share: reading operations and receipts, and telling what operations cost."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ledger.errors import InvalidInput
from node.cli.access import digest_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.api.contract_models import Contract, Cost
    from node.client import NodeClient
    from node.contract_requests import KeptAnswer

_LONG_CHARACTERS = 40
MAX_JSON_BYTES = 1024 * 1024
"""64 operations of 1 KiB take far less, written as JSON."""
ContractArgument = Annotated[str, typer.Argument(help="Identifier of the contract.", metavar="CONTRACT")]
ReceiptOption = Annotated[
    str | None, typer.Option(help="Receipt that spchain contract send has saved.", metavar="FILE")
]
KeyOption = Annotated[str, typer.Option(help="Key file of who signs and pays the fee.", metavar="FILE")]


def contract_in(client: "NodeClient", text: str) -> "Contract":
    """Return the contract that a text names. Raises `InvalidInput`, `ApiError`."""
    return client.contracts.contract(digest_in(text, "contract"))


def json_in(text: str, what: str) -> Any:  # noqa: ANN401 -- JSON of any shape
    """Return JSON given as such, as `@FILE`, or as `-` on standard input. Raises `InvalidInput`."""
    from node.files import read_file

    if text == "-":
        raw = sys.stdin.buffer.read(MAX_JSON_BYTES + 1)
    elif text.startswith("@"):
        raw = read_file(Path(text[1:]).expanduser(), MAX_JSON_BYTES, what)
    else:
        raw = text.encode()
    if len(raw) > MAX_JSON_BYTES:
        raise InvalidInput(f"{what}: more than {MAX_JSON_BYTES} bytes of JSON")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{what} are no JSON ({error}); quote them: '{{\"pay\": {{…}}}}'") from error


def receipt_in(file: str) -> "KeptAnswer":
    """Return what `spchain contract send --save` has written. Raises `InvalidInput`."""
    from node.contract_requests import MAX_ANSWER_BYTES, decode_answer
    from node.files import read_file

    return decode_answer(read_file(Path(file).expanduser(), MAX_ANSWER_BYTES, "receipt"))


def share(total: int, parts: int, unit: str) -> str:
    """Return a share of a total, with four significant digits at least."""
    value = total / parts
    text = f"{value:.4g}" if value < 1_000 else f"{value:.0f}"
    return f"{text} {unit}" + ("" if text == "1" else "s")


def brief(operation: object) -> str:
    """Return an operation for a table: digests and addresses by their beginning."""
    if not isinstance(operation, dict) or len(operation) != 1:
        return str(operation)
    ((name, fields),) = operation.items()
    return f"{name} " + ", ".join(f"{field} {_short(value)}" for field, value in fields.items())


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:8]}…" if isinstance(value, str) and len(text) >= _LONG_CHARACTERS else text


def cost_facts(cost: "Cost", onchain_bytes: int | None = None) -> dict[str, object]:
    """Return in words what one operation costs off the chain and would cost on it."""
    beside = f"{cost.onchain_fee_microcredit} microcredits and {onchain_bytes or cost.onchain_bytes} bytes, as a transaction of its own"
    if not cost.batches:
        return {"costs off chain": "not known before the first batch", "costs on chain": beside}
    measured = "one batch" if cost.batches == 1 else f"the last {cost.batches} batches"
    measured += " of 1 operation" if cost.operations == 1 else f" of {cost.operations} operations"
    return {
        "costs off chain": (
            f"{share(cost.fee_microcredit, cost.operations, 'microcredit')} and "
            f"{share(cost.chain_bytes, cost.operations, 'byte')} of the chain per operation, by {measured}; "
            f"the operator pays ({cost.paid_by.hex()[:8]}…)"
        ),
        "costs on chain": beside,
    }


def counting(what: str) -> "Callable[[int, int], None]":
    """Return what notes, now and then, how far a long search has come."""
    from node.cli.shell import note

    def told(done: int, of: int) -> None:
        if done and done % 50 == 0:
            note(f"{what}: {done} of {of} batches")

    return told
