# SPDX-License-Identifier: GPL-3.0-or-later
"""What a patient's audit asks of a node about access-log contracts; see `node.access_audit`."""

from collections.abc import Iterator, Sequence

from contracts.machines.access_log import ACCESS_LOG
from node.access_audit import ContractOf
from node.access_chain import decode_parameters
from node.client import NodeClient
from node.http_client import ApiError


class NodeReads:
    """Implements `node.access_audit.ContractReads` over HTTP; what comes back is checked there."""

    def __init__(self, client: NodeClient) -> None:
        """Ask one node."""
        self._contracts = client.contracts

    def access_logs(self) -> Iterator[ContractOf]:
        """Yield all access-log contracts."""
        for found in self._contracts.contracts():
            if (found.machine, found.version) == (ACCESS_LOG.name, ACCESS_LOG.version):
                writers = decode_parameters(found.raw_parameters).writers
                yield ContractOf(found.contract_id, found.operator_address, writers, found.final_count)

    def commitments(self, contract_id: bytes) -> Sequence[bytes]:
        """Return the commitments of all batches."""
        return [batch.commitment for batch in self._contracts.batches(contract_id)]

    def data(self, contract_id: bytes, number: int) -> bytes | None:
        """Return the published data of a batch; None when it cannot be had."""
        try:
            return self._contracts.data(contract_id, number)
        except ApiError:
            return None

    def proof(self, contract_id: bytes, number: int, key: bytes) -> bytes | None:
        """Return a state key with its proof; None when the node cannot prove it."""
        try:
            return self._contracts.value_proof(contract_id, number, key).entry
        except ApiError:
            return None
