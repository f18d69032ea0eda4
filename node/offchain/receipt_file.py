# SPDX-License-Identifier: GPL-3.0-or-later
"""Receipts that were handed to the watcher, on the disk: a restart must not free an operator of its word.

R1 `put` returns when the receipt survives a loss of power.
R2 What is read was checked when it was put; a damaged row is passed over, as nothing can be done about it.

All calls block; they are safe from several worker threads.
"""

from pathlib import Path
from typing import Self

from ledger.codec import decoder, encode
from ledger.errors import InvalidInput
from ledger.offchain import SignedReceipt
from records.sqlite_file import SqliteFile

_FORMAT = 1
_SCHEMA = """
CREATE TABLE receipts (
    contract_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    signature BLOB NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (contract_id, number, signature)
) WITHOUT ROWID
"""
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL")
_decode = decoder(SignedReceipt, 512, name="receipt")


class ReceiptFile:
    """Receipts in one file; one process at a time. Who puts them bounds their number."""

    def __init__(self, path: Path, *, chain_id: bytes) -> None:
        """Open or create the file, whose folder exists. Raises `StoreError`; see `SqliteFile`."""
        self._file = SqliteFile(path, chain_id=chain_id, table_format=_FORMAT, schema=_SCHEMA, pragmas=_PRAGMAS)

    def close(self) -> None:
        """Let another process open the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, signed: SignedReceipt) -> None:
        """Keep a receipt durably; again is no change. Raises `StorageFull`, `StoreError`; nothing was changed then."""
        receipt = signed.receipt
        row = (receipt.contract_id, receipt.number, signed.signature, encode(signed))
        with self._file.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?)", row)

    def all(self) -> list[SignedReceipt]:
        """Return all receipts, by contract and batch. Raises `StoreError`."""
        found = []
        with self._file.transaction() as connection:
            for (content,) in connection.execute("SELECT content FROM receipts ORDER BY contract_id, number"):
                try:
                    found.append(_decode(content))
                except InvalidInput:
                    continue
        return found

    def remove(self, contract_id: bytes, number: int) -> None:
        """Let go of the receipts about a batch. Raises `StoreError`; nothing was changed then."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM receipts WHERE contract_id = ? AND number = ?", (contract_id, number))

    def remove_all(self, contract_id: bytes) -> None:
        """Let go of a contract's receipts. Raises `StoreError`; nothing was changed then."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM receipts WHERE contract_id = ?", (contract_id,))
