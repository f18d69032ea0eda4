# SPDX-License-Identifier: GPL-3.0-or-later
"""A node whose operator steals: `python lying_operator.py DATA_DIR` runs a real one that writes itself credits into its contracts' states.

It does so before the first request of each batch, once there is a file `lie` in its data directory; from there on its journal, receipts,
roots and commitments all fit the forged state, so that nothing short of executing the requests shows it. All the rest is the program that
honest operators run.
"""

import os
import sys
from pathlib import Path

from contracts.execution import MACHINE_PREFIX
from contracts.journal import Accepted
from contracts.machines.micro_fees import balance_key
from contracts.operator import Operator
from contracts.requests import CheckedRequest
from ledger.codec import encode
from ledger.crypto.keys import address_of
from ledger.offchain import Place
from node import run
from node.config import load_config
from node.keystore import passphrase_from_file, read_key
from node.offchain import recovering

LOOT_MICROCREDIT = 10**9
"""What it gives itself."""
SIGN = "lie"


class LyingOperator(Operator):
    """Credits itself."""

    sign = Path()
    """File at whose sight it begins to lie."""

    def _take(self, request: CheckedRequest, place: Place) -> Accepted:
        if not place.index and self.sign.exists():
            key = MACHINE_PREFIX + balance_key(address_of(self._terms.operator))
            self.state.put(key, encode(LOOT_MICROCREDIT))
        return super()._take(request, place)


def main(data_dir: Path) -> int:
    """Run the node until SIGINT or SIGTERM."""
    config = load_config(data_dir, os.environ, {})
    assert config.passphrase_file is not None, "a devnet has one"
    LyingOperator.sign = data_dir / SIGN
    setattr(recovering, "Operator", LyingOperator)  # noqa: B010 -- what the node recovers its operators as
    return run.run_node(config, read_key(config.key_file, passphrase_from_file(config.passphrase_file)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
