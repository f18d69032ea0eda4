# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a record may be, in plain and encrypted."""

MAX_BUNDLE_BYTES = 16 << 20
"""Plain bundle. The longest lives that generators of synthetic patients write have 11 MB; scans and films belong
in an archive that the bundle points to. Also the bound of decompression: no blob unpacks to more."""

MAX_BLOB_BYTES = (8 << 20) - (64 << 10)
"""Encrypted blob. Nodes hand blobs to each other in one request or answer of at most 8 MiB; 64 KiB stay for its
framing.

FHIR compresses about twenty-fold, so an ordinary bundle of 16 MiB fits many times over. What hardly compresses is
base64 of pictures (to three quarters): more than about 10 MB of them in one bundle is refused when it is sealed."""
