"""Lattices as text: the Standard Lattice Format of HTK [Young et al. 2006, The HTK Book, ch. 20]."""

import math
import re
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np

from asr_lightning.errors import InputError, reason, shown
from asr_lightning.files import regular, write_atomically
from asr_lightning.hmm.lattice import Lattice

NO_WORD = "!NULL"
LARGEST = 1e12  # of any number in a lattice; HTK writes 1e10 for what is impossible
FIELD = re.compile(r"""(\S+?)=("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\S*)""")
NAMES = {"UTTERANCE": "U", "VERSION": "V", "NODES": "N", "LINKS": "L", "START": "S", "END": "E", "WORD": "W"}
NAMES |= {"acoustic": "a", "language": "l", "time": "t"}
Fields = dict[str, str]


def write_slf(lattice: Lattice, path: Path, hop: float, utterance: str = "") -> None:
    """Write a lattice, with natural log probabilities: `a` of frames, as they were scaled, and `l` of the graph.

    Args:
        lattice: What is written.
        path: The file.
        hop: Seconds from frame to frame.
        utterance: Its name.
    """
    lines = ["VERSION=1.0", *([f"UTTERANCE={_quote(utterance)}"] if utterance else []), "base=2.718281828459045"]
    lines += ["lmscale=1.0", "wdpenalty=0.0", "acscale=1.0", f"start=0 end={len(lattice.frames) - 1}"]
    lines += [f"N={len(lattice.frames)} L={len(lattice.words)}"]
    lines += [f"I={number} t={frame * hop:.10g}" for number, frame in enumerate(lattice.frames.tolist())]
    links = zip(
        lattice.sources.tolist(), lattice.targets.tolist(), lattice.words, lattice.acoustic_costs.tolist(),
        lattice.graph_costs.tolist(), strict=True,
    )  # fmt: skip
    lines += [
        f"J={number} S={source} E={target} W={_quote(word or NO_WORD)} a={-acoustic:.10g} l={-graph:.10g}"
        for number, (source, target, word, acoustic, graph) in enumerate(links)
    ]
    write_atomically(path, "\n".join(lines) + "\n")


def _quote(text: str) -> str:
    text = text.replace("\\", "\\\\")
    if any(letter.isspace() for letter in text):
        return '"' + text.replace('"', '\\"') + '"'
    return f"\\{text}" if text[:1] in ("'", '"') else text


def read_slf(path: Path, hop: float) -> Lattice:
    """Read a lattice that this suite, HTK or another tool has written; its scales and word penalty are applied.

    A word is that of the link, or else of the node behind it.

    Args:
        path: The file.
        hop: Seconds from frame to frame.

    Raises:
        InputError: It cannot be read or is no such lattice: links that are missing or lead nowhere or in a circle, or
            no one start and end.
    """
    try:
        rows = [
            _fields(line) for line in regular(path).read_text(encoding="utf-8").splitlines() if not line.startswith("#")
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read a lattice from {path.absolute()}: {error}") from error
    header = {name: value for row in rows if not {"I", "J"} & row.keys() for name, value in row.items()}
    nodes = {row["I"]: row for row in rows if "I" in row}
    links = [row for row in rows if "J" in row]
    try:
        counts, found = (int(header["N"]), int(header["L"])), (len(nodes), len(links))
        if counts != found:
            raise ValueError(f"{found[0]} nodes and {found[1]} links where it says N={counts[0]} L={counts[1]}")
        return _lattice(header, nodes, links, hop)
    except KeyError as error:
        raise InputError(f"{path}: expected a lattice in HTK's format, found no {reason(error)}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected a lattice in HTK's format, found {reason(error)}") from error


def _fields(line: str) -> Fields:
    fields = {}
    for name, value in FIELD.findall(line):
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        fields[NAMES.get(name, name)] = re.sub(r"\\(.)", r"\1", value)
    return fields


def _lattice(header: Fields, nodes: dict[str, Fields], links: list[Fields], hop: float) -> Lattice:
    base = _number(header, "base", math.e)
    if not base > 1:
        raise ValueError(f"no logarithms, but base={base:g}")
    order = _in_order(header, nodes, links)
    places = {name: place for place, name in enumerate(order)}
    words = [link.get("W", nodes[link["E"]].get("W", NO_WORD)) for link in links]
    of_graph, of_frames = (math.log(base) * _number(header, scale, 1.0) for scale in ("lmscale", "acscale"))
    penalties = [_number(header, "wdpenalty") if word != NO_WORD else 0.0 for word in words]
    return Lattice(
        np.array([round(_number(nodes[name], "t") / hop) for name in order], dtype=np.int64),
        np.array([places[link["S"]] for link in links], dtype=np.int64),
        np.array([places[link["E"]] for link in links], dtype=np.int64),
        tuple("" if word == NO_WORD else word for word in words),
        -of_graph * np.array([_number(link, "l") for link in links]) - np.array(penalties),
        -of_frames * np.array([_number(link, "a") for link in links]),
    )


def _number(fields: Fields, name: str, default: float = 0.0) -> float:
    """Return a number that Kaldi's single precision can count with: what overflows there ends the process."""
    number = float(fields.get(name, default))
    if not abs(number) <= LARGEST:
        raise ValueError(f"{name}={shown(fields[name])}, no number up to {LARGEST:g}")
    return number


def _in_order(header: Fields, nodes: dict[str, Fields], links: list[Fields]) -> list[str]:
    """Return the names of nodes so that links lead forwards, from the start to the end."""
    before: dict[str, list[str]] = {name: [] for name in nodes}
    for link in links:
        before[link["E"]].append(link["S"])
    left = {link["S"] for link in links}
    starts = [header["start"]] if "start" in header else [name for name in nodes if not before[name]]
    ends = [header["end"]] if "end" in header else [name for name in nodes if name not in left]
    if len(starts) != 1 or len(ends) != 1 or starts == ends:
        raise ValueError(f"starts at nodes [{', '.join(starts)}] and ends at [{', '.join(ends)}], not one of each")
    between = [name for name in TopologicalSorter(before).static_order() if name not in (*starts, *ends)]
    return [*starts, *between, *ends]
