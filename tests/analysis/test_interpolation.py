import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asr_lightning.analysis.interpolation import Quality, along_line, barrier, interpolate, line_positions, quality
from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.batch_norm import MaskedBatchNorm
from asr_lightning.scoring.error_rates import ErrorRates

RATE = 8_000


def planted(first: Tensor, second: Tensor) -> tuple[nn.Linear, dict[str, Tensor]]:
    """A network of one row of weights, whose loss is to be a quadratic form of them."""
    network = nn.Linear(len(first), 1, bias=False, dtype=torch.float64)
    network.weight.data = first[None].clone()
    return network, {"weight": second[None]}


def test_a_planted_quadratic_is_the_parabola_that_algebra_gives() -> None:
    draw = torch.Generator().manual_seed(1)
    root, first, second = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((5, 5), (5,), (5,)))
    curvature = root @ root.T
    network, other = planted(first, second)

    def loss() -> float:
        row = network.weight.detach()[0]
        return float(row @ curvature @ row)

    line = dict(along_line(network, other, line_positions(), loss))
    ends, mixed = (
        [float(weights @ curvature @ weights) for weights in (first, second)],
        float(first @ curvature @ second),
    )
    for position, loss in line.items():
        rest = 1 - position
        assert loss == pytest.approx(rest**2 * ends[0] + 2 * rest * position * mixed + position**2 * ends[1], rel=1e-12)
    assert [line[0.0], line[1.0]] == pytest.approx(ends, rel=1e-12)
    assert torch.equal(network.weight[0], first), "it has its own weights again"
    assert barrier(list(line.items())) == pytest.approx(0, abs=1e-12), "a convex bowl has none"
    hill = [(position, -loss) for position, loss in line.items()]
    gap = float((second - first) @ curvature @ (second - first))
    assert barrier(hill) == pytest.approx(gap / 4), "half-way, and 0.5 is among the places"


def test_weights_come_back_when_measuring_fails() -> None:
    network, other = planted(torch.zeros(2), torch.ones(2))

    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        list(along_line(network, other, [0.5], fail))
    assert torch.equal(network.weight, torch.zeros(1, 2))


@pytest.mark.parametrize("position", [-0.25, 0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0, 1.25])
def test_ends_are_exact_and_a_network_with_itself_stays_what_it_is(position: float) -> None:
    draw = torch.Generator().manual_seed(2)
    first, second = ({"weight": torch.randn(1_000, generator=draw) * 10.0**power} for power in (3, -3))
    assert torch.equal(interpolate(first, first, position, ["weight"])["weight"], first["weight"])
    if position in (0.0, 1.0):
        assert torch.equal(
            interpolate(first, second, position, ["weight"])["weight"], (first, second)[int(position)]["weight"]
        )


def test_buffers_stay_within_the_ends_and_counts_are_whole() -> None:
    first = {"weight": torch.tensor([1.0]), "variance": torch.tensor([1.0]), "count": torch.tensor(10)}
    second = {"weight": torch.tensor([9.0]), "variance": torch.tensor([9.0]), "count": torch.tensor(21)}
    below, between, above = (interpolate(first, second, position, ["weight"]) for position in (-0.25, 0.25, 1.25))
    assert [float(state["weight"]) for state in (below, between, above)] == [-1.0, 3.0, 11.0]
    assert [float(state["variance"]) for state in (below, between, above)] == [1.0, 3.0, 9.0]
    assert [state["count"].item() for state in (below, between, above)] == [10, 13, 21]
    assert below["count"].dtype == torch.int64


def test_running_statistics_are_interpolated_too() -> None:
    first, second = MaskedBatchNorm(2), MaskedBatchNorm(2)
    second.running_mean.fill_(4.0)
    x, lengths = torch.ones(1, 3, 2), torch.tensor([3])
    first.eval()
    values = dict(along_line(first, second.state_dict(), [0.0, 0.5], lambda: float(first(x, lengths).detach().mean())))
    assert values == pytest.approx({0.0: 1.0, 0.5: -1.0}, rel=1e-4)


def test_places_hold_both_ends_exactly() -> None:
    assert line_positions() == [number / 8 for number in range(-2, 11)]
    assert line_positions(0.0, 1.0, 2) == [0.0, 1.0]
    odd = line_positions(-0.3, 1.1, 29)
    assert {0.0, 1.0} <= set(odd)
    assert len(odd) == 29
    assert line_positions(-0.3, 1.3, 4) == pytest.approx([-0.3, 0.0, 7 / 30, 23 / 30, 1.0, 1.3])
    for wrong in ((0.1, 1.0, 5), (0.0, 0.9, 5), (0.0, 1.0, 1)):
        with pytest.raises(ValueError, match="holds 0 and 1"):
            line_positions(*wrong)


def test_the_barrier_is_above_the_chord_and_between_the_ends() -> None:
    line = [(-0.25, 99.0), (0.0, 2.0), (0.25, 2.0), (0.75, 6.0), (1.0, 4.0), (1.25, 99.0)]
    assert barrier(line) == 2.5  # above 3.5
    assert math.isnan(barrier([(0.0, 1.0), (0.5, math.nan), (1.0, 1.0)]))


@pytest.fixture
def recognizer() -> Recognizer:
    sizes: dict[str, Any] = {"input_dimension": 8, "hidden": 4, "layers": 1, "channels": 2, "dropout": 0.3}
    config = {
        "class_path": "asr_lightning.models.ctc.CTCRecognizer",
        "init_args": {
            "tokenizer": "asr_lightning.text.tokenizers.CharacterTokenizer",
            "features": {
                "class_path": "asr_lightning.audio.features.LogMel",
                "init_args": {"mels": 8, "sample_rate": RATE},
            },
            "encoder": {"class_path": "asr_lightning.nn.recurrent.LSTMEncoder", "init_args": sizes},
        },
    }
    return build_recognizer(config).eval()


def test_quality_is_that_of_validation(recognizer: Recognizer) -> None:
    """The mean over utterances, not over batches, without those whose loss is infinite."""
    draw = torch.Generator().manual_seed(3)
    texts = ["AB", "C", "A" * 200, "AC"]
    spoken = [
        Utterance(str(row), torch.randn(4_000, generator=draw) / 10, RATE, text) for row, text in enumerate(texts)
    ]
    batches = [Batch.collate(spoken[:1]), Batch.collate(spoken[1:])]
    with torch.no_grad():
        alone = [float(recognizer.loss(Batch.collate([utterance]))) for utterance in spoken]
    assert math.isinf(alone[2])
    result = quality(recognizer, batches, recognize=True)
    assert result.loss == pytest.approx(sum(alone[row] for row in (0, 1, 3)) / 3, rel=1e-5)
    assert result.utterances == 3
    rates = ErrorRates()
    rates.update(texts, [recognizer.transcribe(Batch.collate([utterance]))[0] for utterance in spoken])
    assert result.error_rates == pytest.approx({name: float(value) for name, value in rates.compute().items()})
    assert quality(recognizer, batches).error_rates == {}
    nothing = quality(recognizer, [])
    assert (nothing.utterances, math.isnan(nothing.loss)) == (0, True)
    assert isinstance(nothing, Quality)
