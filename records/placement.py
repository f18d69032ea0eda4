# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes keep which blob, and which are the proxies of a grant, by rendezvous hashing (Thaler and Ravishankar, 1998).

Every node ranks all nodes for a blob by a hash of both; the first k keep it. Nobody has to be asked and nothing is
stored, and
R1 the answer depends on the set of nodes only, not on their order, on every platform;
R2 a node that leaves moves only its own blobs, and each to one other node;
R3 a node that comes takes its share, 1/n of every other's, and moves nothing between the others.
"""

import heapq
from collections.abc import Iterable

from ledger.crypto.hashing import DIGEST_BYTES, Tag, tagged_hash
from ledger.errors import InvalidInput


def holders(blob_id: bytes, nodes: Iterable[bytes], k: int) -> tuple[bytes, ...]:
    """Return the k nodes that keep a blob, the first in rank first; all of them when there are no more than k.

    Args:
        blob_id: 32-byte content address.
        nodes: identifiers; repeated ones count once. The author, who keeps its blobs anyway, is left out by the caller.
        k: how many copies beside the author's.
    """
    assert len(blob_id) == DIGEST_BYTES, f"a blob id has 32 bytes, not {len(blob_id)}"
    assert k >= 0, f"{k} holders were asked for"
    return _ranked(Tag.PLACEMENT, blob_id, nodes, k)


def draw_proxies(
    patient: bytes, grant_number: int, grantee: bytes, institutions: Iterable[bytes], n: int
) -> tuple[bytes, ...]:
    """Return n proxies for a patient's next grant, out of the registered institutions.

    The draw depends on nothing that the grantee chooses: with an address made for the purpose it could else have its friends
    drawn. Whoever knows the chain can repeat it.

    Args:
        patient: the patient's address.
        grant_number: the patient's `grant_count`: every grant is drawn anew.
        grantee: who will read; it is never drawn.
        institutions: addresses; repeated ones count once.
        n: how many.

    Raises:
        InvalidInput: there are fewer institutions than that.
    """
    candidates = set(institutions) - {grantee}
    if n > len(candidates):
        raise InvalidInput(f"{n} proxies are wanted, and {len(candidates)} institutions could be; ask for fewer")
    seed = tagged_hash(Tag.PROXY_DRAW, patient, grant_number.to_bytes(8, "big"))
    return _ranked(Tag.PROXY_DRAW, seed, candidates, n)


def _ranked(tag: Tag, seed: bytes, nodes: Iterable[bytes], k: int) -> tuple[bytes, ...]:
    ranked = heapq.nlargest(k, ((tagged_hash(tag, seed, node), node) for node in set(nodes)))
    return tuple(node for _, node in ranked)
