"""Downloads: file names that every system accepts, and a ZIP archive that is sent while it is written."""

from __future__ import annotations

import io
import pathlib
import re
import zipfile
from collections.abc import AsyncIterator
from urllib.parse import quote

ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}  # other formats: the format's name in lower case
# Separators, and characters that Windows forbids. Python's \w includes the letters of every script.
REFUSED = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u202a-\u202e\u2066-\u2069]')


def file_name(title: str, format: str | None) -> str:
    ending = ENDINGS.get(format or "", (format or "bin").lower())
    return f"{REFUSED.sub('_', title).strip(' .')[:120] or 'photo'}.{ending}"


def attachment(name: str) -> dict[str, str]:
    """Headers of a download (RFC 6266): never shown in the browser, whatever the bytes are."""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    return {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"}


class Sink(io.RawIOBase):
    """A buffer of what zipfile has written and the server hasn't sent. It can't seek, so zipfile writes a streamed
    archive."""

    def __init__(self):
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.written += data
        return len(data)

    def take(self) -> bytes:
        taken, self.written = bytes(self.written), bytearray()
        return taken


async def zipped(files: AsyncIterator[tuple[str, bytes]]) -> AsyncIterator[bytes]:
    sink, used = Sink(), set()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # photos are compressed already
        async for name, data in files:
            path, again = pathlib.PurePath(name), 2
            while name.casefold() in used:
                name, again = f"{path.stem} ({again}){path.suffix}", again + 1
            used.add(name.casefold())
            archive.writestr(name, data)
            yield sink.take()
    yield sink.take()
