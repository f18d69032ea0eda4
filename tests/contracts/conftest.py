# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of the contracts' tests; what they build is in `contracts_kit`."""

from hypothesis import settings

# A machine shared with other work is slow now and then; a deadline would measure that.
settings.register_profile("contracts", deadline=None)
settings.load_profile("contracts")
