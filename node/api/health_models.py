# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of the answer to load balancers."""

from node.api.models import Model


class Health(Model):
    """A node that can serve."""

    status: str
    """"ok"."""
