import math

import kaldi_hmm_gmm as kaldi
import numpy as np
import pytest
import torch
from torchaudio.functional import compute_deltas

from asr_lightning.audio.features import MFCC
from asr_lightning.errors import InputError
from asr_lightning.hmm.frame_alignment import align_frames, phone_runs
from asr_lightning.hmm.gmm import (
    ACOUSTIC_SCALE,
    CepstralFeatures,
    GaussianMixtures,
    TrainingPass,
    TrainingUtterance,
    _mixture,
    _split,
    train,
)
from asr_lightning.hmm.graph import expand_to_states, sentence_transducer
from asr_lightning.hmm.model import STATES, HiddenMarkovModel
from tests.support.small_models import LEXICON, SIL, A, B, S

SAYINGS = {
    "A BE": [SIL, A, B],
    "SAY BE": [S, A, SIL, B, SIL],
    "BE A": [B, A, SIL],
    "BE SAY": [SIL, B, S, A],
    "SAY": [SIL, S, A, SIL],
    "A A": [A, SIL, A],
}
MEANS = 4.0 * np.random.default_rng(7).standard_normal((6, STATES, 6))  # of phones' states


def planted(model: HiddenMarkovModel, count: int) -> tuple[list[TrainingUtterance], list[list[tuple[int, int, str]]]]:
    """Features around the means of states that last for two to six frames, and where phones begin and end."""
    random = np.random.default_rng(1)
    examples, truths = [], []
    for number in range(count):
        words, phones = list(SAYINGS.items())[number % len(SAYINGS)]
        lengths = random.integers(2, 7, (len(phones), STATES))
        means = MEANS[phones].reshape(-1, 6).repeat(lengths.reshape(-1), axis=0)
        features = (means + random.standard_normal(means.shape)).astype(np.float32)
        examples.append(
            TrainingUtterance(str(number), features, expand_to_states(model, sentence_transducer(model, words.split())))
        )
        ends = lengths.sum(axis=1).cumsum().tolist()
        truths.append(list(zip([0, *ends], ends, (model.phones[phone - 1] for phone in phones), strict=False)))
    return examples, truths


@pytest.fixture(scope="module")
def model() -> HiddenMarkovModel:
    return HiddenMarkovModel.monophone(LEXICON)


TrainedMixtures = tuple[list[TrainingPass], GaussianMixtures]


def trained(model: HiddenMarkovModel, examples: list[TrainingUtterance], **options: int) -> TrainedMixtures:
    results = list(train(model, examples, **options))
    return [iteration for iteration, _ in results], results[-1][1]


@pytest.fixture(scope="module")
def result(model: HiddenMarkovModel) -> TrainedMixtures:
    return trained(model, planted(model, 48)[0], passes=12, gaussians=24)


def test_every_pass_explains_the_data_better(result: TrainedMixtures) -> None:
    passes, mixtures = result
    assert [iteration.number for iteration in passes] == list(range(1, 13)) and not any(
        iteration.failed for iteration in passes
    )
    rises = np.diff([iteration.log_likelihood for iteration in passes])
    assert (rises > -0.02).all() and rises.sum() > 5.0  # new Gaussians and a scaled search may cost a little
    # Of the Gaussians that made the data: 6 dimensions with a variance of 1.
    assert passes[-1].log_likelihood == pytest.approx(-0.5 * 6 * (math.log(2 * math.pi) + 1), abs=0.4)
    gaussians = [iteration.gaussians for iteration in passes]
    assert gaussians == sorted(gaussians) and 15 < gaussians[-1] <= 24
    assert mixtures.mixtures.num_gauss == gaussians[-1] and len(set(gaussians[8:])) == 1


def test_given_alignments_are_where_training_begins(model: HiddenMarkovModel) -> None:
    """After the first pass a pdf's Gaussian has mean and variance of the frames that were aligned with it."""
    examples, truths = planted(model, 24)
    begin = {}
    reference = GaussianMixtures(model, planted_mixtures(model))  # Kaldi's decodables do not hold what they read
    for example, truth in zip(examples, truths, strict=True):
        ids = align_frames(reference.decodable(example.features), example.graph)
        assert [phone for *_, phone in phone_runs(model, ids)] == [phone for *_, phone in truth]
        begin[example.id] = ids
    [(first, states)] = list(train(model, examples, passes=1, gaussians=model.pdfs, begin=begin))
    frames = np.concatenate([example.features for example in examples])
    pdfs = np.concatenate([model.pdf_of[begin[example.id]] for example in examples])
    compared = 0
    for pdf in np.unique(pdfs):
        aligned, mixture = frames[pdfs == pdf], states.mixtures.get_pdf(int(pdf))
        if len(aligned) > 20:
            compared += 1
            assert np.allclose(mixture.means[0], aligned.mean(axis=0), atol=1e-3)
            assert np.allclose(mixture.vars[0], aligned.var(axis=0), atol=1e-2)
    assert compared > 8 and first.failed == 0
    del begin["0"]
    with pytest.raises(KeyError):
        next(train(model, examples, begin=begin))


def planted_mixtures(model: HiddenMarkovModel) -> kaldi.AmDiagGmm:
    """The Gaussians that the features were made with."""
    mixtures = kaldi.AmDiagGmm()
    means = {int(model.pdf_of[model.transition_id((0, phone, 0, state), True)]): MEANS[phone][state]
              for phone in range(1, len(model.phones) + 1) for state in range(STATES)}  # fmt: skip
    for pdf in range(model.pdfs):
        mixtures.add_pdf(_mixture(np.ones(1), means[pdf][None], np.ones((1, 6))))
    return mixtures


def test_planted_borders_are_found(model: HiddenMarkovModel, result: TrainedMixtures) -> None:
    examples, truths = planted(model, 48)
    distances = []
    for example, truth in zip(examples, truths, strict=True):
        runs = phone_runs(model, align_frames(result[1].decodable(example.features), example.graph))
        assert [phone for *_, phone in runs] == [phone for *_, phone in truth]
        distances += [abs(run[0] - true[0]) for run, true in zip(runs, truth, strict=True)]
    assert max(distances) <= 2 and np.mean(np.array(distances) == 0) > 0.9


def test_transitions_are_counted(result: TrainedMixtures) -> None:
    model = result[1].model
    stays = model.transition_counts[model.stays].sum() / model.transition_counts.sum()
    assert stays == pytest.approx(3 / 4, abs=0.02)  # states last for four frames on average
    assert model.transition_counts.sum() == sum(len(example.features) for example in planted(model, 48)[0])


def test_log_likelihoods_are_those_of_the_mixtures(result: TrainedMixtures) -> None:
    states = result[1]
    features = planted(states.model, 1)[0][0].features
    decodable = states.decodable(features)
    assert decodable.num_frames_ready() == len(features)
    compared = 0
    for pdf in range(states.model.pdfs):
        mixture = states.mixtures.get_pdf(pdf)
        precisions = np.array(mixture.inv_vars, dtype=np.float64)
        means = np.array(mixture.means_invvars, dtype=np.float64) / precisions
        distances = (precisions * (features[3] - means) ** 2).sum(axis=1)
        densities = np.exp(-0.5 * distances) * np.sqrt(precisions / (2 * math.pi)).prod(axis=1)
        expected = ACOUSTIC_SCALE * math.log((np.array(mixture.weights) * densities).sum() + 1e-300)
        if expected > -30:
            id = int(np.flatnonzero(states.model.pdf_of[1:] == pdf)[0]) + 1
            assert decodable.log_likelihood(3, id) == pytest.approx(expected, abs=1e-3)
            compared += 1
    assert compared > 5


def parameters(states: GaussianMixtures) -> list[np.ndarray]:
    pdfs = [states.mixtures.get_pdf(pdf) for pdf in range(states.model.pdfs)]
    return [np.array(values) for pdf in pdfs for values in (pdf.weights, pdf.means_invvars, pdf.inv_vars)]


def test_the_same_seed_gives_the_same_mixtures(model: HiddenMarkovModel) -> None:
    examples, _ = planted(model, 12)
    results = [trained(model, examples, passes=5, gaussians=30, seed=seed) for seed in (1, 1, 2)]
    first, repeated, different = (parameters(states) for _, states in results)
    assert results[0][0] == results[1][0] and all(map(np.array_equal, first, repeated))
    assert results[0][1].mixtures.num_gauss > 15  # Gaussians were split
    assert not all(left.shape == right.shape and np.array_equal(left, right) for left, right in zip(first, different))  # noqa: B905


@pytest.mark.parametrize("gaussians", [5, 9, 20, 1000])
def test_as_many_gaussians_are_split_as_by_kaldi(gaussians: int) -> None:
    random = np.random.default_rng(gaussians)
    mixtures = kaldi.AmDiagGmm()
    for _ in range(5):
        mixtures.add_pdf(_mixture(np.ones(1), random.standard_normal((1, 3)), random.uniform(0.5, 2.0, (1, 3))))
    frames = np.array([0.0, 45.0, 61.0, 400.0, 150.0])
    grown = _split(mixtures, frames, gaussians, random)
    sizes = [grown.get_pdf(pdf).num_gauss for pdf in range(5)]
    for pdf, size in enumerate(sizes):
        old, new = mixtures.get_pdf(pdf), grown.get_pdf(pdf)
        assert new.weights.sum() == pytest.approx(1.0)
        assert np.allclose(new.weights @ new.means, old.means, atol=1e-5)
        assert len({*new.means[:, 0]}) == size
        assert np.abs(new.means - old.means).max() < 0.3 and np.allclose(new.vars, old.vars)
    mixtures.split_by_count(frames.astype(np.float32), gaussians, 0.01, 0.2, 20.0)
    assert sizes == [mixtures.get_pdf(pdf).num_gauss for pdf in range(5)]
    assert sum(sizes) == min(gaussians, 1 + 2 + 3 + 19 + 7)


def test_nothing_to_learn_from_is_refused(model: HiddenMarkovModel) -> None:
    with pytest.raises(InputError, match="got none"):
        next(train(model, []))
    graph = expand_to_states(model, sentence_transducer(model, ["A", "BE"]))
    short = [TrainingUtterance(str(n), np.ones((5, 2), dtype=np.float32), graph) for n in range(3)]
    with pytest.raises(InputError, match="none of 3 utterances could be aligned"):
        next(train(model, short))


def test_what_is_too_short_is_counted_and_left_out(model: HiddenMarkovModel) -> None:
    examples, _ = planted(model, 12)
    short = TrainingUtterance("short", examples[0].features[:5], examples[0].graph)
    passes, states = trained(model, [*examples, short], passes=3, gaussians=15)
    assert [iteration.failed for iteration in passes] == [1, 1, 1]
    assert states.model.transition_counts.sum() == sum(len(example.features) for example in examples)


def test_cepstral_features_are_normalized_coefficients_and_differences_twice() -> None:
    audio = 0.1 * torch.randn(16_000)
    features = CepstralFeatures()(audio)
    coefficients, lengths = MFCC(13, mels=40)(audio[None], torch.tensor([16_000]))
    centered = coefficients - coefficients.mean(dim=1, keepdim=True)
    static = (centered / coefficients.std(dim=1, keepdim=True, unbiased=False)).transpose(1, 2)
    expected = torch.cat([static, compute_deltas(static), compute_deltas(compute_deltas(static))], dim=1)[0].T
    assert features.shape == (int(lengths[0]), 39) and features.dtype == np.float32
    assert features.flags.c_contiguous
    assert np.allclose(features, expected.numpy(), atol=1e-3)
    assert np.abs(features[:, 13:]).max() > 0.1
