"""Arrays that a run kept, read from an .npz as if its author were hostile: nothing is unpickled, and what it comes to is known before it is unpacked.

`numpy.load` takes memory for the shape that a header claims, and unpacks a member to its end, so that a file of some kilobytes can fill any memory.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BYTES = 512 << 20
"""Of all arrays of a file that is read for a page: those of a deep audit take some megabytes."""
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How numpy packs; other ways may ask for gigabytes before a byte is unpacked."""
UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error, SyntaxError)
"""All that is raised for a damaged file, by `zipfile` and by the reader of numpy's headers as well."""


def read_arrays(path: Path, *, most: int | None = MOST_BYTES) -> dict[str, NDArray[Any]]:
    """Every array of an .npz, by name.

    Args:
        path: The file.
        most: Bytes that they may come to; None for a file of our own making, which may be as large as memory.

    Raises:
        OSError, ValueError: It cannot be read, is damaged, holds objects, or comes to more. See `UNREADABLE`.
    """
    if not path.is_file():  # a pipe would keep us for ever
        raise FileNotFoundError(path)
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if most is not None and sum(member.file_size for member in members) > most:
            raise ValueError(f"the arrays come to more than {most} bytes")
        found = {}
        for member in members:
            if member.compress_type not in PACKED:
                raise ValueError("an array is packed in a way that numpy does not pack")
            with archive.open(member) as part:
                found[member.filename.removesuffix(".npy")] = _array(part, member.file_size)
    return found


def _array(part: IO[bytes], size: int) -> NDArray[Any]:
    import numpy as np  # a third of the time that a page of text takes, and most pages of text need no array

    version = np.lib.format.read_magic(part)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, by_columns, dtype = header[version](part)
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError("an array holds objects, or nothing")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != size - part.tell():
        raise ValueError("an array is not as large as its header says")
    flat = np.frombuffer(bytearray(part.read()), dtype=dtype)
    return flat.reshape(shape, order="F" if by_columns else "C")
