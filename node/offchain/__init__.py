# SPDX-License-Identifier: GPL-3.0-or-later
"""Off-chain contracts on a node: published data, the operator's service, the watcher."""
