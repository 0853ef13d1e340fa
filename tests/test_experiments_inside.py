"""Labels, the paper's sentences and its Table 2 in the experiments that look inside networks."""

from pathlib import Path

import lightning
import pytest
import yaml

from asr_lightning.analysis.character_neighbours import PublishedTable
from asr_lightning.callbacks.neighbours import Neighbours
from asr_lightning.errors import InputError
from asr_lightning.models.instantiation import instantiate
from asr_lightning.text.phones import PhoneLabels

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
INSIDE = sorted(EXPERIMENTS.rglob("*_inside.yaml"))
PAPER = ["oh that made him so angry", "at last the little mice stayed away also and the tree sighed after all it was"]


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_labels_are_named_and_an_error_says_how_they_are_made(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without labels, pictures by phone would be blank."""
    monkeypatch.chdir(tmp_path)
    callbacks = yaml.safe_load(path.read_text("utf-8"))["trainer"]["callbacks+"]
    [activations] = [callback for callback in callbacks if callback["class_path"].endswith("Activations")]
    labels, _ = instantiate(activations["init_args"]["labels"], PhoneLabels, "labels")  # type: ignore[type-abstract]
    with pytest.raises(InputError, match=r"no phone labels at .*make them with `.*align"):
        labels.require()


@pytest.mark.parametrize("name", ["e2e_a", "e2e_b", "hybrid"])
def test_full_size_looks_at_the_paper_s_sentences_and_prints_its_table(name: str) -> None:
    config = yaml.safe_load((EXPERIMENTS / f"{name}_inside.yaml").read_text("utf-8"))
    callbacks = {
        callback["class_path"].rpartition(".")[2]: callback.get("init_args")
        for callback in config["trainer"]["callbacks+"]
    }
    assert all(map(str.startswith, callbacks["TSNE"]["sentences"], PAPER))
    if name == "e2e_b":
        neighbours, _ = instantiate(config["trainer"]["callbacks+"][2], lightning.Callback, "a callback")
        assert isinstance(neighbours, Neighbours) and neighbours.sentences == 79
        assert isinstance(neighbours.published, PublishedTable)
        means = [neighbours.published.mean(layer, 5) for layer in range(6)]
        assert means == ["1.84", "1.94", "1.99", "1.96", "1.93", "1.93"]  # as Table 2 prints them
