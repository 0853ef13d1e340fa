"""Check of transducers in the binary form of OpenFst, whose reader does not check numbers."""

import struct

import numpy as np

MAGIC = 2125659606
HEADER = struct.Struct("<iiQqqq")  # version, flags, properties, start, states, arcs
STATE, ARC = 3, 4  # 32-bit words: a weight and how many arcs; labels of both sides, a weight, the next state
VERSION = 2  # OpenFst reads none before it, and there is none after it
MOST = 2**31  # states


def check_fst(data: bytes) -> None:
    """Check that a vector transducer of standard arcs is complete, and that no arc leads out of it.

    OpenFst's reader would ask for memory for as many states as the header says, and a search would follow an arc into
    memory that is not its own.

    Args:
        data: Of a file.

    Raises:
        ValueError: It is no such transducer.
    """
    offset = 4
    if data[:4] != struct.pack("<i", MAGIC):
        raise ValueError("expected OpenFst's mark at byte 0, found another")
    for kind in (b"vector", b"standard"):
        if data[offset : offset + 4 + len(kind)] != struct.pack("<i", len(kind)) + kind:
            raise ValueError(f"expected {kind.decode()!r} at byte {offset}, found something else")
        offset += 4 + len(kind)
    if len(data) < offset + HEADER.size:
        raise ValueError("the file ends within the header")
    version, flags, _, start, states, _ = HEADER.unpack_from(data, offset)
    if version != VERSION:
        raise ValueError(f"expected version {VERSION}, found {version}")
    offset += HEADER.size
    words = np.frombuffer(data, "<i4", (len(data) - offset) // 4, offset)
    if flags or not 0 <= start < states <= min(MOST, len(words) // STATE) or (len(data) - offset) % 4:
        raise ValueError(f"a header with {states} states and the start state {start} in a file of {len(data)} bytes")
    firsts, counts = np.zeros(states, np.int64), np.zeros(states, np.int64)
    position = 0
    for state in range(states):
        count = int(words[position + 1]) if position + STATE <= len(words) and not words[position + 2] else -1
        firsts[state], counts[state] = position + STATE, count
        position += STATE + ARC * count
        if count < 0 or position > len(words):
            raise ValueError(f"the file ends within state {state}")
    indices = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    arcs = np.repeat(firsts, counts) + ARC * indices
    if position != len(words) or not np.all((words[arcs + 3] >= 0) & (words[arcs + 3] < states)):
        raise ValueError("arcs to states that do not exist, or bytes after the last state")
    if np.any(words[arcs] < 0) or np.any(words[arcs + 1] < 0):
        raise ValueError("labels below 0")
