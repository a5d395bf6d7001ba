"""Members of an archive that another harness wrote, within a limit on what they unpack to.

Inspect packs its `.eval` files with zstandard, which Python's own zipfile does not read before 3.14; the package `zstandard`, if it is installed, does.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from forensics.errors import BadInput

MOST_BYTES = 512 * 2**20
"""Of a file, and of everything in an archive: results of a harness are texts of some megabytes."""
ZSTANDARD = 93
READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, ZSTANDARD)
"""Ways of packing; others ask for gigabytes before a byte is unpacked."""
LOCAL_HEADER, NAME_AND_EXTRA = 30, 26
"""Bytes of a member's own header, and where in it the lengths of the two fields behind it stand (APPNOTE.TXT 4.3.7)."""
MARK = b"PK\x03\x04"
UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error,  # damaged
    EOFError, OSError, ValueError,  # cut short; places outside of the file, names that are no text (UnicodeDecodeError is a ValueError)
    RuntimeError,  # encrypted; NotImplementedError, for a way of packing that Python lacks, is one too
)  # fmt: skip
"""All that `zipfile` raises on an archive that it cannot read."""


def members(raw: bytes, where: Path) -> dict[str, zipfile.ZipInfo]:
    """The table of contents of an archive, by name; nothing is unpacked.

    Raises:
        BadInput: It is damaged, holds a name twice, or would unpack to more than `MOST_BYTES`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            listed = archive.infolist()
    except UNREADABLE as error:
        raise _damaged(where) from error
    found = {info.filename: info for info in listed}
    if len(found) < len(listed):
        raise BadInput("a name stands twice in this archive", where=str(where), hint="write the log again with one run")
    if any(info.compress_type not in READ for info in listed):
        raise _damaged(where)
    if sum(info.file_size for info in listed) > MOST_BYTES:
        raise BadInput(
            f"this archive unpacks to more than {MOST_BYTES >> 20} MiB",
            where=str(where),
            hint="split the log, or convert its samples to JSONL of your own",
        )
    return found


def unpacked(raw: bytes, wanted: list[zipfile.ZipInfo], where: Path) -> Iterator[bytes]:
    """The contents of members, one after the other.

    Raises:
        BadInput: A member is damaged or encrypted, or packed in a way that cannot be read here; the message says which.
    """
    library = _zstandard(where) if any(info.compress_type == ZSTANDARD for info in wanted) else None
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for info in wanted:
            try:
                content = _plain(archive, info) if library is None or info.compress_type != ZSTANDARD else _zstd(raw, info, library)
            except UNREADABLE as error:
                raise _damaged(where, info.filename) from error
            if content is None:
                raise _damaged(where, info.filename)
            yield content


def _plain(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as stream:
        return stream.read()  # no more than the table of contents says


def _zstd(raw: bytes, info: zipfile.ZipInfo, library: ModuleType) -> bytes | None:
    """A member packed with zstandard; None if it is not what the table of contents says."""
    fields = struct.unpack_from("<HH", raw, info.header_offset + NAME_AND_EXTRA)
    start = info.header_offset + LOCAL_HEADER + sum(fields)
    try:
        with library.ZstdDecompressor().stream_reader(raw[start : start + info.compress_size], read_across_frames=True) as stream:
            content = bytes(stream.read(info.file_size + 1))
    except library.ZstdError:
        return None
    return content if len(content) == info.file_size and zlib.crc32(content) == info.CRC else None


def _zstandard(where: Path) -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise BadInput(
            "this archive is packed with zstandard, and the package that reads it is not installed",
            where=str(where),
            hint="pip install zstandard; or write JSON: `inspect log convert LOG --to json --output-dir DIR`, `inspect eval --log-format json`",
        ) from error
    return zstandard


def _damaged(where: Path, name: str = "") -> BadInput:
    return BadInput(
        "this archive is damaged, encrypted, or packed in a way that is not read",
        where=f"{where}, {name}" if name else str(where),
        hint="copy or write it again; `inspect log convert LOG --to json --output-dir DIR` makes JSON of it",
    )
