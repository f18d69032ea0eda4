# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines that come with the program. Who adds one puts it into `SHIPPED`; who changes the rules of one makes a new version."""

from contracts.machines.access_log import ACCESS_LOG
from contracts.machines.appointments import APPOINTMENTS
from contracts.machines.micro_fees import MICRO_FEES
from contracts.machines.vital_signs import VITAL_SIGNS

SHIPPED = (ACCESS_LOG, APPOINTMENTS, MICRO_FEES, VITAL_SIGNS)
"""All machines, each with name and version."""
