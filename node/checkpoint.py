# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint as the operator writes it: a keyblock that the chain must hold."""

import re

from consensus.weight import FinalPoint
from ledger.errors import InvalidInput

_FORM = re.compile(r"([0-9]{1,18}):([0-9a-fA-F]{64})")


def parse_checkpoint(text: str) -> FinalPoint:
    """Read "<epoch>:<hash of the keyblock that began it>"; raises `InvalidInput`."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise InvalidInput(
            f'{text!r} is no checkpoint; write "<epoch>:<keyblock>", both as `spchain status` shows them on a node that you trust '
            "(the keyblock has 64 hexadecimal digits)"
        )
    return FinalPoint(int(found[1]), bytes.fromhex(found[2]))
