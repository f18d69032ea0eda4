# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node keeps on disk of off-chain contracts, in one folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from node.offchain.data_store import DataStore
from node.offchain.journal_file import JournalFile
from node.offchain.receipt_file import ReceiptFile
from node.offchain.snapshots import Snapshots


class OffchainFiles(msgspec.Struct, frozen=True):
    """The open files; each is for one process alone."""

    data: DataStore
    """Published data of batches, from all operators."""
    journal: JournalFile
    """What this node has promised as an operator."""
    snapshots: Snapshots
    """States of contracts that this node watches."""
    receipts: ReceiptFile
    """What other operators have promised, as users have handed it to the watcher."""


@contextmanager
def open_offchain(directory: Path, chain_id: bytes, data_bytes: int) -> Iterator[OffchainFiles]:
    """Open the files; data of batches may take so many bytes. Raises `StoreError`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        DataStore(directory / "data.sqlite", chain_id=chain_id, capacity_bytes=data_bytes) as data,
        JournalFile(directory / "journal.sqlite", chain_id=chain_id) as journal,
        Snapshots(directory / "snapshots.sqlite", chain_id=chain_id) as snapshots,
        ReceiptFile(directory / "receipts.sqlite", chain_id=chain_id) as receipts,
    ):
        yield OffchainFiles(data, journal, snapshots, receipts)
