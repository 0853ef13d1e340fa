import subprocess
import sys
from collections.abc import Callable
from itertools import count, product
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.hmm.kaldi_tree import LEFT, RIGHT, Node, as_kaldi, read_tree
from asr_lightning.hmm.model import STATES, HiddenMarkovModel
from tests.support.small_models import NO_ROWS, asking_trees, monophone, tied, walk

PHONES = 5
both = pytest.mark.parametrize("make", [monophone, tied])


def random_trees(seed: int) -> dict[tuple[int, int], Node]:
    random = np.random.default_rng(seed)
    pdfs = count()

    def tree(depth: int) -> Node:
        if random.random() < 0.3 or not depth:
            return Node(NO_ROWS, next(pdfs))
        members = frozenset(np.flatnonzero(random.random(PHONES + 1) < 0.4).tolist() or [0])
        side = LEFT if random.random() < 0.5 else RIGHT
        return Node(NO_ROWS, -1, (side, members), [tree(depth - 1), tree(depth - 1)])

    return {(phone, state): tree(4) for phone in range(1, PHONES + 1) for state in range(STATES)}


def test_kaldi_walks_through_trees_as_we_do() -> None:
    neighbours = range(PHONES + 1)
    for roots in (asking_trees(PHONES), *map(random_trees, range(3))):
        tree = as_kaldi(roots, PHONES)
        pdfs = set()
        for *triphone, state in product(neighbours, range(1, PHONES + 1), neighbours, range(STATES)):
            success, pdf = tree.compute(triphone, state)
            assert success and pdf == walk(roots[triphone[1], state], triphone)
            pdfs.add(pdf)
        assert len(pdfs) > 25 and tree.num_pdfs > max(pdfs)
        assert (tree.context_width, tree.central_position) == (3, 1)


def test_trees_that_no_reader_would_take_are_not_made() -> None:
    for pdfs in ([0, 0], [0, 2], [-1, 0]):  # one in two states, a gap, no number
        roots = {(1, state): Node(NO_ROWS, pdf) for state, pdf in enumerate(pdfs)}
        with pytest.raises(ValueError, match="pdf|number"):
            as_kaldi(roots, 1)


def test_trees_of_other_phones_or_states_are_refused(tmp_path: Path) -> None:
    monophone().write(tmp_path)
    data = (tmp_path / "tree").read_bytes()
    assert read_tree(data, 5, STATES).num_pdfs == 15
    for phones, states in [(4, STATES), (6, STATES), (5, 2)]:
        with pytest.raises(ValueError, match="expected a tree"):
            read_tree(data, phones, states)


DAMAGE = """
import sys
from itertools import product
from pathlib import Path
import kaldi_hmm_gmm as kaldi
from asr_lightning.hmm.kaldi_tree import read_tree
from asr_lightning.hmm.model import STATES, topology

phones = 5
data = Path(sys.argv[1]).read_bytes()
pdfs = read_tree(data, phones, STATES).num_pdfs
cut = [data[:size] + end for size in range(len(data)) for end in (b"", b"EndContextDependency ")]
doubled = [data[:place] + data[place - 4 :] for place in range(4, len(data), 3)]
flipped = [bytes([*data[:n], data[n] ^ bit, *data[n + 1 :]]) for n in range(len(data)) for bit in (1, 4, 32, 128)]
refused = taken = 0
for damaged in cut + doubled + flipped:
    try:
        tree = read_tree(damaged, phones, STATES)
    except ValueError as error:
        assert "expected a tree in Kaldi's binary form" in str(error), error
        refused += 1
        continue
    taken += 1  # another phone in a question, or two pdfs exchanged: nobody can know
    assert len(damaged) == len(data) and tree.num_pdfs == pdfs
    kaldi.TransitionModel(tree, topology(phones))
    for left, phone, right, state in product(range(phones + 1), range(1, phones + 1), range(phones + 1), range(STATES)):
        found, pdf = tree.compute([left, phone, right] if tree.context_width == 3 else [phone], state)
        assert found and 0 <= pdf < pdfs
print(refused, taken)
"""


@both
def test_no_damage_to_a_tree_ends_the_process(make: Callable[[], HiddenMarkovModel], tmp_path: Path) -> None:
    make().write(tmp_path)
    command = [sys.executable, "-c", DAMAGE, str(tmp_path / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    refused, accepted = map(int, done.stdout.split())
    assert refused > 20 * accepted
