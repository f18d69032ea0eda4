# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts at a node: operating them, keeping and fetching the data of batches, watching what others operate."""
