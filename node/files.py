# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the operator: read with a bound, created whole or not at all, never overwritten by accident."""

import os
import secrets
import stat
from pathlib import Path

from ledger.errors import InvalidInput


def read_file(path: Path, limit_bytes: int, what: str) -> bytes:
    """Read a regular file of at most `limit_bytes`, looking at its size first. Raises `InvalidInput`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(f"{what} {path} is not a regular file; name one")
        if status.st_size > limit_bytes:
            raise InvalidInput(
                f"{what} {path} has {status.st_size} bytes; at most {limit_bytes} are accepted: is it the right file?"
            )
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)  # it may have grown since
    except OSError as error:
        raise InvalidInput(
            f"{what} {path} cannot be read: {error.strerror}; check the path and its permissions"
        ) from error
    if len(data) > limit_bytes:
        raise InvalidInput(f"{what} {path} grew beyond {limit_bytes} bytes while it was read")
    return data


def is_there(path: Path) -> bool:
    """Tell whether a name given by the user is that of a file or directory; one that no file can have is not."""
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def create_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a new file that is complete and on the disk when it appears; refuses to overwrite. Raises `InvalidInput`."""
    _write(path, data, mode, overwrite=False)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file that is complete and on the disk when it appears, in place of an older one. Raises `InvalidInput`."""
    _write(path, data, mode, overwrite=True)


def _write(path: Path, data: bytes, mode: int, *, overwrite: bool) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InvalidInput(f"{path} cannot be written: {path.parent} is no directory; choose another path") from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        # Secrets are never readable by others, not even for a moment: the mode is set at creation.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if overwrite:
                temporary.replace(path)
            else:
                # Unlike a rename, a link fails when the name is taken, also by another process in this moment.
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError as error:
        raise InvalidInput(
            f"{path} exists already and is not overwritten; choose another name or move it away"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(
        f"{path} cannot be written: {error.strerror}; check the directory, its permissions and free space"
    )
