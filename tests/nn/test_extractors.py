import pytest
import torch
from torch import Tensor, nn

from asr_lightning.nn.axes import axis_size
from asr_lightning.nn.extractors import VGG, Convolutions1d, Convolutions2d
from asr_lightning.nn.sequences import Encoder


def randomized(extractor: Encoder) -> Encoder:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return extractor


def plain(extractor: Encoder, pooling: bool = False) -> nn.Sequential:
    """The same network of torch's own layers, for utterances of one length, as (B, 1, T, F) or (B, F, T)."""
    layers: list[nn.Module] = []
    flat = isinstance(extractor, Convolutions1d)
    for number, convolution in enumerate(extractor.convolutions):  # type: ignore[arg-type, var-annotated]
        norm = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(convolution.out_channels)
        norm.load_state_dict(
            {"weight": extractor.norms[number].weight, "bias": extractor.norms[number].bias},  # type: ignore[index]
            strict=False,
        )
        layers += [convolution, norm, nn.Hardtanh(0, 20)]
        if pooling and number % 2:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("extractor", [Convolutions2d(21), VGG(21, [3, 5])], ids=["2-D", "VGG"])
@pytest.mark.parametrize("frames", [20, 23])
def test_two_dimensions_are_those_of_torch(extractor: Encoder, frames: int) -> None:
    x = torch.randn(3, frames, 21, generator=torch.Generator().manual_seed(0))
    randomized(extractor).train()
    y, lengths = extractor(x, torch.full((3,), frames))
    expected = plain(extractor, pooling=isinstance(extractor, VGG))(x.unsqueeze(1))  # (B, C, T, F)
    torch.testing.assert_close(y, expected.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-4)
    assert lengths.tolist() == [y.shape[1]] * 3
    assert y.shape[2] == extractor.dimension == axis_size(extractor.output_axis())
    assert y.max() > 0.5


def test_one_dimension_is_that_of_torch() -> None:
    x = torch.randn(3, 15, 6, generator=torch.Generator().manual_seed(0))
    extractor = randomized(Convolutions1d(6, [8, 4], [5, 3], [1, 2]))
    y, lengths = extractor(x, torch.full((3,), 15))
    torch.testing.assert_close(y, plain(extractor)(x.transpose(1, 2)).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert lengths.tolist() == [8] * 3 == [y.shape[1]] * 3


@pytest.mark.parametrize(
    ("extractor", "dimension", "factor"),
    [
        (Convolutions2d(161), 32 * 41, 2),
        (Convolutions2d(80), 32 * 20, 2),
        (
            Convolutions2d(161, [32, 32, 96], [[41, 11], [21, 11], [21, 11]], [[2, 2], [2, 1], [2, 1]]),
            96 * 21,
            2,
        ),
        (Convolutions1d(161), 1280, 2),
        (Convolutions1d(161, [512] * 3, [5, 5, 5], [1, 1, 2]), 512, 2),
        (VGG(80), 128 * 20, 4),
    ],
    ids=["DS2", "KoSpeech", "three", "one 1-D", "three 1-D", "VGG"],
)
def test_the_published_ones_have_the_published_sizes(extractor: Encoder, dimension: int, factor: int) -> None:
    lengths = torch.tensor([37, 1, 0, 20])
    y, output_lengths = extractor.eval()(torch.randn(4, 37, extractor.input_dimension), lengths)
    assert y.shape == (4, -(-37 // factor), dimension)
    assert output_lengths.tolist() == [-(-length // factor) for length in lengths.tolist()]


@pytest.mark.parametrize(
    "extractor", [Convolutions2d(9), Convolutions1d(9, [6]), VGG(9, [3])], ids=["2-D", "1-D", "VGG"]
)
def test_nothing_behind_an_end_is_seen_or_counted(extractor: Encoder) -> None:
    lengths = torch.tensor([7, 12, 3])

    def run(garbage: float) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(3, 12, 9, generator=torch.Generator().manual_seed(1))
        for row, length in enumerate(lengths.tolist()):
            x[row, length:] = garbage
        state = {name: value.clone() for name, value in extractor.state_dict().items()}
        y, output_lengths = extractor.train()(x, lengths)
        statistics = {name: value.clone() for name, value in extractor.state_dict().items() if "running" in name}
        extractor.load_state_dict(state)
        return torch.cat([row[:length] for row, length in zip(y, output_lengths.tolist(), strict=True)]), statistics

    torch.testing.assert_close(run(0.0), run(1e3))


def test_lists_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"odd kernels and strides .* got channels=\[4\], kernels=\[4\]"):
        Convolutions1d(9, [4], [4], [1])
    with pytest.raises(ValueError, match="for each layer"):
        Convolutions2d(9, [4, 4], [[3, 3]], [[1, 1]])
