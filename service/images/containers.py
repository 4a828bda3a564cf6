"""Minimal parsers: the colours of a file, and which chunks to skip."""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from service.images.colors import Chromaticities, Declared

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_KEPT: Final = (b"tRNS", b"eXIf")  # beside what is critical
_MOST_PROFILE_BYTES: Final = 16 << 20  # as a JPEG can hold; profiles of presses take some megabytes
_GAMMAS: Final = range(10_000, 1_000_001)  # of gAMA, 100,000 to the encoding exponent: 10 to 0.1
_USUAL_GAMMAS: Final = range(43_300, 47_700)  # within 5 % of 1 / 2.2: sRGB is meant


def trim_png(file: bytes) -> tuple[bytes, Declared]:
    """A PNG with pixels and orientation alone, and its colours; any other file as it is.

    Text and profiles are left out unread, however large they are.
    """
    if not file.startswith(_PNG):
        return file, Declared()
    kept, colors = [_PNG], dict[bytes, bytes]()
    deep = len(file) > 25 and file[24:26] == b"\x10\x02"  # 16 bits of RGB, which Pillow halves
    for kind, chunk in _split_png(file):
        if kind == b"tRNS" and deep and len(chunk) == 18:
            chunk = _chunk(kind, bytes(byte for each in chunk[8:14:2] for byte in (0, each)))
        if kind in _KEPT or not kind[0] & 0x20:
            kept.append(chunk)
        else:
            colors.setdefault(kind, chunk[8:-4])
    return b"".join(kept), _read_png_colors(colors)


def _split_png(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, chunk) of each; what is cut off comes last, for the decoder to refuse."""
    position = len(_PNG)
    while position + 12 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        yield kind, file[position : position + 12 + length]
        position += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _read_png_colors(chunks: dict[bytes, bytes]) -> Declared:
    """PNG specification, third edition, 11.3.2; a chunk of a wrong length is as good as none."""
    codes = chunks.get(b"cICP", b"")
    if len(codes) == 4:
        return Declared(codes=(codes[0], codes[1]))
    icc = _inflate_profile(chunks.get(b"iCCP", b""))
    if icc is not None or b"sRGB" in chunks:
        return Declared(icc=icc)
    gamma, corners = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    return Declared(
        gamma=_read_gamma(int.from_bytes(gamma)) if len(gamma) == 4 else None,
        primaries=_read_corners(corners) if len(corners) == 32 else None,
    )


def _read_gamma(level: int) -> float | None:
    """None: sRGB's curve, which is meant, or what no display has."""
    return 100_000 / level if level in _GAMMAS and level not in _USUAL_GAMMAS else None


def _read_corners(chunk: bytes) -> Chromaticities:
    white_x, white_y, *colors = (value / 100_000 for value in struct.unpack(">8I", chunk))
    red_x, red_y, green_x, green_y, blue_x, blue_y = colors
    return red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y


def _inflate_profile(chunk: bytes) -> bytes | None:
    _, _, packed = chunk.partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(packed[1:], _MOST_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if inflater.eof else None


def read_codes(file: bytes) -> tuple[int, int] | None:
    """Primaries and transfer of the main picture of an AVIF or HEIC file (ISO/IEC 14496-12, 12.1.5).

    Which of the properties are its own, the box `ipma` says: a gain map has colours too.
    """
    if file[4:8] != b"ftyp":
        return None
    try:
        meta = _find(file, b"meta")[4:]
        properties = [*_split_boxes(_find(_find(meta, b"iprp"), b"ipco"))]
        own = _associations(_find(_find(meta, b"iprp"), b"ipma"), _main_item(_find(meta, b"pitm")))
        for kind, body in (properties[index - 1] for index in own if index):
            if kind == b"colr" and body[:4] == b"nclx":
                primaries, transfer = struct.unpack_from(">HH", body, 4)
                return primaries, transfer
    except (KeyError, IndexError, struct.error):
        return None
    return None


def _find(boxes: bytes, wanted: bytes) -> bytes:
    for kind, body in _split_boxes(boxes):
        if kind == wanted:
            return body
    raise KeyError(wanted)


def _split_boxes(boxes: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(boxes):
        size, kind = struct.unpack_from(">I4s", boxes, position)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", boxes, position + 8), 16
        end = len(boxes) if size == 0 else position + max(size, head)
        yield kind, boxes[position + head : end]
        position = end


def _main_item(pitm: bytes) -> int:
    return struct.unpack_from(">I" if pitm[0] else ">H", pitm, 4)[0]


def _associations(ipma: bytes, item: int) -> list[int]:
    """Which properties an item has, counted from 1 (ISO/IEC 23008-12, 9.3.1)."""
    wide_items, wide_indices = ipma[0] > 0, ipma[3] & 1
    (entries,), position = struct.unpack_from(">I", ipma, 4), 8
    for _ in range(entries):
        (found,) = struct.unpack_from(">I" if wide_items else ">H", ipma, position)
        position += 4 if wide_items else 2
        count, position = ipma[position], position + 1
        indices = struct.unpack_from(f">{count}{'H' if wide_indices else 'B'}", ipma, position)
        position += count * (2 if wide_indices else 1)
        if found == item:
            return [index & (0x7FFF if wide_indices else 0x7F) for index in indices]
    raise KeyError(item)
