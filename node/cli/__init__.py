# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line `spchain`: one short module per group of verbs. Heavy imports stand inside the verbs: help must answer at once."""
