"""Image files that need far more memory or time than their size suggests. Each is made here, from what its format
allows."""

from __future__ import annotations

import struct
import zlib


def png(width: int, height: int, colour: int = 2, depth: int = 8) -> bytes:
    """A black PNG, a thousand times smaller than its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + (width * samples * depth + 7) // 8)
    squeezer = zlib.compressobj(9)
    rows = max(1, (16 << 20) // len(row))
    data = b"".join(squeezer.compress(row * min(rows, height - y)) for y in range(0, height, rows)) + squeezer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(width: int, height: int, samples: int = 3, bits: int = 8, floats: bool = False, rows: int = 100) -> bytes:
    """A TIFF compressed with Deflate, all of whose strips point to the same stored strip."""
    rows = min(rows, height)
    strip = zlib.compress(bytes(rows * ((width * samples * bits + 7) // 8)), 9)
    strips = -(-height // rows)
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * samples),
        259: ("H", [8]),
        262: ("H", [1 if samples < 3 else 2]),
        273: ("I", [8] * strips),
        277: ("H", [samples]),
        278: ("I", [rows]),
        279: ("I", [len(strip)] * strips),
        339: ("H", [3 if floats else 1] * samples),
    }
    if samples == 4:
        entries[338] = ("H", [2])
    extra, directory = b"", struct.pack("<H", len(entries))
    at = 8 + len(strip) + len(strip) % 2
    extra_at = at + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        raw = struct.pack(f"<{len(values)}{kind}", *values)
        if len(raw) > 4:
            place, extra = struct.pack("<I", extra_at + len(extra)), extra + raw
        else:
            place = raw.ljust(4, b"\0")
        directory += struct.pack("<HHI", tag, 3 if kind == "H" else 4, len(values)) + place
    return b"II*\0" + struct.pack("<I", at) + strip + bytes(len(strip) % 2) + directory + bytes(4) + extra


def progressive(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG of three components with all coefficients zero; every scan repeats that."""

    def segment(marker: int, payload: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload

    def packed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    def scan(components: list[int], start: int, end: int, approximation: int, data: bytes) -> bytes:
        chosen = b"".join(bytes([component, 0]) for component in components)
        return segment(0xDA, bytes([len(components)]) + chosen + bytes([start, end, approximation])) + data

    blocks = -(-width // 8) * -(-height // 8)
    # "0" begins a run of at least 2^14 blocks, "10" is one block.
    full, rest = divmod(blocks, 32767)
    bits = ("0" + "1" * 14) * full
    bits += "0" + format(rest - 16384, "014b") if rest >= 16384 else "10" * rest
    nothing = packed(bits)
    components = b"".join(bytes([component, 0x11, 0]) for component in (1, 2, 3))
    out = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    out += segment(0xC2, struct.pack(">BHHB", 8, height, width, 3) + components)
    out += segment(0xC4, b"\0\1" + bytes(15) + b"\0") + segment(0xC4, b"\x10\1\1" + bytes(14) + b"\xe0\0")
    out += scan([1, 2, 3], 0, 0, 0, packed("0" * (3 * blocks)))
    for component in (1, 2, 3):
        out += scan([component], 1, 63, 1, nothing)
    for number in range(4, scans):
        out += scan([1 + number % 3], 1, 63, 0x10, nothing)
    return out + b"\xff\xd9"
