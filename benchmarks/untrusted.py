"""Peak memory of decoding what a client may send: 64 megapixels of 16 bits.

.venv/bin/python benchmarks/untrusted.py
"""

import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator

_SIDE_PX = 8000


def main() -> None:
    for name, channels in (("RGB", 3), ("RGBA", 4)):
        line = (bytes(range(256)) * (_SIDE_PX * 2 * channels // 256 + 1))[: _SIDE_PX * 2 * channels]
        file = encode_png((line for _ in range(_SIDE_PX)), bits=16, channels=channels)
        with tempfile.TemporaryFile() as turn:
            command = [sys.executable, "-m", "service.images.decoder", "64", str(8 << 30), "60"]
            began = time.monotonic()
            child = subprocess.Popen(
                [*command, str(turn.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[turn.fileno()],
            )
            assert child.stdin
            child.stdin.write(file)
            child.stdin.close()
            _, code, usage = os.wait4(child.pid, 0)
        assert code == 0, name
        print(f"{name}: {time.monotonic() - began:.1f} s, peak {usage.ru_maxrss >> 10} MiB")


def encode_png(rows: Iterator[bytes], *, bits: int = 8, channels: int = 3) -> bytes:
    """RGB or RGBA; the number of rows is the number of columns."""
    packer, side_px, packed = zlib.compressobj(1), 0, list[bytes]()
    for row in rows:
        packed.append(packer.compress(b"\0" + row))
        side_px += 1
    packed.append(packer.flush())

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side_px, side_px, bits, {3: 2, 4: 6}[channels], 0, 0, 0)
    pixels = chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(packed))
    return b"\x89PNG\r\n\x1a\n" + pixels + chunk(b"IEND", b"")


if __name__ == "__main__":
    main()
