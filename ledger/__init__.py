# SPDX-License-Identifier: GPL-3.0-or-later
"""What the network agrees on: types, codec, transition and store."""
