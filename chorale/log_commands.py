"""The commands in a file of the queue server's log, as RESP: where each ends, and where reading fails."""

import mmap
import re
from array import array

_COMMAND = re.compile(rb"\*([1-9]\d{0,6})\r\n")
_ARGUMENT = re.compile(rb"\$(\d{1,9})\r\n")


def find_ends(data: mmap.mmap) -> tuple["array[int]", int]:
    """Bytes behind each transaction, of one command or of MULTI to EXEC; and byte at which reading fails."""
    ends, position, is_open = array("Q"), 0, False
    while found := _read_command(data, position):
        name, after = found
        if name == (b"MULTI" if is_open else b"EXEC"):
            return ends, ends[-1] if ends else 0  # its counterpart, somewhere before it, is damaged
        is_open = name == b"MULTI" or (is_open and name != b"EXEC")
        position = after
        if not is_open:
            ends.append(position)
    return ends, position


def count_after(data: mmap.mmap, position: int) -> int:
    """Number of whole commands that can be read after damage."""
    count = 0
    while match := _COMMAND.search(data, position):
        found = _read_command(data, match.start())
        count += found is not None
        position = found[1] if found else match.end()
    return count


def _read_command(data: mmap.mmap, position: int) -> tuple[bytes, int] | None:
    """Name in capitals, and the byte after it; None if there is no whole command."""
    header = _COMMAND.match(data, position)
    if header is None:
        return None
    name, position = b"", header.end()
    for number in range(int(header[1])):
        length = _ARGUMENT.match(data, position)
        if length is None:
            return None
        start, end = length.end(), length.end() + int(length[1])
        if data[end : end + 2] != b"\r\n":
            return None
        name = data[start:end].upper() if number == 0 else name
        position = end + 2
    return name, position
