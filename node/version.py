# SPDX-License-Identifier: GPL-3.0-or-later
"""The version of the program, from its metadata."""

from importlib.metadata import version

VERSION = version("spchain")
