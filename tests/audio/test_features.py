import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torchaudio

from asr_lightning.audio.features import MFCC, Features, LogMel, PowerSpectrogram
from asr_lightning.audio.kaldi_filter_bank import KaldiFilterBank
from asr_lightning.audio.normalization import GlobalNormalization, UtteranceNormalization
from asr_lightning.audio.public_features import DecibelLogMel, PublicLogMel
from asr_lightning.errors import InputError

FEATURES = [LogMel, MFCC, PowerSpectrogram, KaldiFilterBank]


def speech_like(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise (S,) whose loudness rises and falls, with a constant offset."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return 0.1 * noise * torch.sin(torch.arange(samples) / 3000.0).square() + 0.01


def padded(*utterances: torch.Tensor, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(audio) for audio in utterances])
    audio = torch.zeros(len(utterances), int(lengths.max()) + extra)
    for row, utterance in zip(audio, utterances, strict=True):
        row[: len(utterance)] = utterance
    return audio, lengths


@pytest.mark.parametrize("scale", [1.0, 32768.0])
@pytest.mark.parametrize(("sample_rate", "mels"), [(16_000, 80), (16_000, 40), (8_000, 23)])
def test_kaldi_filter_bank_equals_kaldi(scale: float, sample_rate: int, mels: int) -> None:
    long, short = speech_like(20_000), speech_like(7_001, seed=1)
    features, lengths = KaldiFilterBank(sample_rate=sample_rate, mels=mels, scale=scale)(*padded(long, short))
    for row, length, audio in zip(features, lengths, (long, short), strict=True):
        expected = torchaudio.compliance.kaldi.fbank(
            scale * audio.unsqueeze(0), num_mel_bins=mels, sample_frequency=sample_rate, dither=0.0, snip_edges=True
        )
        torch.testing.assert_close(row[:length], expected, atol=1e-4, rtol=0.0)


def test_mfcc_equals_torchaudio() -> None:
    audio = speech_like(16_000)
    reference = torchaudio.transforms.MFCC(
        n_mfcc=20,
        log_mels=True,
        melkwargs={
            "n_fft": 512,
            "win_length": 400,
            "hop_length": 160,
            "center": False,
            "n_mels": 60,
            "norm": "slaney",
            "mel_scale": "slaney",
        },
    )
    loud = 1000.0 * audio  # torchaudio adds 1e-6 before its logarithm, we take a maximum
    # torchaudio puts the 400-sample window into the middle of 512 samples: 56 more on either side
    expected = reference(torch.nn.functional.pad(loud, (56, 56))).T
    features, _ = MFCC(coefficients=20, mels=60)(*padded(loud))
    torch.testing.assert_close(features[0], expected, atol=2e-3, rtol=0.0)


def test_mfcc_is_the_orthonormal_cosine_transform_of_log_mel() -> None:
    batch = padded(speech_like(4_000))
    mels, _ = LogMel(mels=40)(*batch)
    cepstra, _ = MFCC(mels=40, coefficients=13)(*batch)
    n, k = np.arange(40), np.arange(13)[:, None]
    matrix = np.cos(math.pi * k * (2 * n + 1) / 80) * np.where(k == 0, math.sqrt(1 / 40), math.sqrt(2 / 40))
    np.testing.assert_allclose(cepstra[0].numpy(), mels[0].numpy() @ matrix.T, atol=1e-4)


def test_power_spectrogram_is_log_power_with_161_dimensions() -> None:
    audio = speech_like(1_000)
    feature = PowerSpectrogram()
    features, lengths = feature(*padded(audio))
    assert features.shape == (1, 1 + (1_000 - 320) // 160, 161) == (1, int(lengths), feature.dimension)
    frame = audio[160:480].double().numpy() * np.hanning(321)[:320]
    np.testing.assert_allclose(features[0, 1].numpy(), np.log(np.abs(np.fft.rfft(frame)) ** 2), atol=1e-3)


def test_a_tone_is_loudest_where_it_belongs() -> None:
    tone = torch.sin(2 * math.pi * 1000.0 * torch.arange(8_000) / 16_000)
    features, _ = PowerSpectrogram()(*padded(tone))
    assert features[0].argmax(dim=1).unique().tolist() == [20]  # 1000 Hz / 50 Hz


@pytest.mark.parametrize("normalization", [None, UtteranceNormalization, GlobalNormalization])
@pytest.mark.parametrize("feature", FEATURES)
def test_padding_changes_nothing(feature: type, normalization: type | None) -> None:
    module = feature(normalization=normalization and normalization())
    module.train()(*padded(speech_like(9_000, seed=7)))  # gives global normalization its statistics
    module.eval()
    utterances = [speech_like(12_345), speech_like(4_001, seed=1), speech_like(100, seed=2)]
    alone = [module(*padded(audio)) for audio in utterances]
    garbage, lengths = padded(*utterances, extra=3_333)
    garbage[torch.arange(garbage.shape[1]) >= lengths.unsqueeze(1)] = float("nan")
    for batch in (padded(*utterances), padded(*utterances, extra=3_333), (garbage, lengths)):
        features, frames = module(*batch)
        for row, count, (expected, expected_count) in zip(features, frames, alone, strict=True):
            assert count == expected_count == expected.shape[1]
            torch.testing.assert_close(row[:count], expected[0], atol=1e-5, rtol=1e-5)
            assert not row[count:].any()


@pytest.mark.parametrize("feature", FEATURES)
def test_frames_are_counted_by_the_formula(feature: type) -> None:
    module = feature(window_seconds=0.025, hop_seconds=0.010)
    lengths = torch.tensor([0, 1, 399, 400, 559, 560, 16_000])
    features, frames = module(torch.rand(7, 16_000), lengths)
    assert frames.tolist() == [1, 1, 1, 1, 1, 2, 98]
    assert features.shape == (7, 98, module.dimension)
    assert (module.hop_seconds, module.sample_rate) == (0.010, 16_000)
    assert torch.isfinite(features).all()


def in_pieces(features: Features, audio: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Features (B, T, D) of audio (B, S) that comes in pieces of the given sizes, over and over."""
    state, start, computed = features.initial_state(len(audio), audio.device), 0, []
    for size in itertools.cycle(sizes):
        piece = audio[:, start : start + size]
        start += size
        frames, state = features.stream(piece, state, last=start >= audio.shape[1])
        computed.append(frames)
        if start >= audio.shape[1]:
            return torch.cat(computed, dim=1)
    raise AssertionError


@pytest.mark.parametrize("samples", [0, 1, 199, 200, 201, 399, 400, 401, 560, 719, 720, 760, 4000, 16_001])
@pytest.mark.parametrize("feature", [*FEATURES, PublicLogMel, partial(DecibelLogMel, decibels=None)])
def test_features_that_come_in_pieces_are_those_of_the_whole(feature: Callable[[], Features], samples: int) -> None:
    features = feature()
    audio = torch.stack([speech_like(samples), speech_like(samples, seed=1)])
    expected, _ = features(audio, torch.tensor([samples, samples]))
    for sizes in ([1] if samples < 1000 else [160], [7, 0, 500], [160], [640], [max(1, samples)]):
        got = in_pieces(features, audio, sizes)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_range_of_decibels_is_that_of_each_utterance() -> None:
    features, quiet = DecibelLogMel(decibels=30.0), speech_like(4_000, seed=1)
    quiet[1_000:] *= 1e-3
    batch = padded(speech_like(8_000), quiet, 1e-2 * quiet)
    both, lengths = features(*batch)
    whole, _ = DecibelLogMel(decibels=None)(*batch)
    for row, free, count in zip(both, whole, lengths.tolist(), strict=True):
        assert row[:count].max() == free[:count].max() and not row[count:].any()
        torch.testing.assert_close(row[:count], free[:count].clamp(min=float(free[:count].max()) - 30.0))
    assert both[1].min() > whole[1].min() and both[2, : lengths[2]].max() < both[1].max() - 30
    alone, _ = features(quiet.unsqueeze(0), torch.tensor([4_000]))
    torch.testing.assert_close(both[1, : lengths[1]], alone[0], atol=1e-4, rtol=0.0)
    with pytest.raises(InputError, match="decibels above 0, or none, got -3"):
        DecibelLogMel(decibels=-3.0)


def test_features_of_windows_with_gaps_between_them_stream() -> None:
    features = LogMel(window_seconds=0.020, hop_seconds=0.033, mels=20)
    audio = speech_like(9_000).unsqueeze(0)
    expected, _ = features(audio, torch.tensor([9_000]))
    for size in (1, 100, 500, 9_000):
        torch.testing.assert_close(in_pieces(features, audio, [size]), expected, atol=1e-4, rtol=1e-4)


def test_normalized_features_stream_where_no_frame_needs_another() -> None:
    audio = speech_like(5_000).unsqueeze(0)
    features = LogMel(normalization=GlobalNormalization())
    features(10 * audio, torch.tensor([5_000]))
    features.eval()
    expected, _ = features(audio, torch.tensor([5_000]))
    assert abs(float(expected.mean())) > 0.1
    torch.testing.assert_close(in_pieces(features, audio, [333]), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="UtteranceNormalization needs the whole utterance"):
        in_pieces(LogMel(normalization=UtteranceNormalization()), audio, [333])
    with pytest.raises(InputError, match="features that stream need snip_edges: true"):
        in_pieces(KaldiFilterBank(snip_edges=False), audio, [333])


@pytest.mark.parametrize("feature", FEATURES)
def test_autocast_does_not_lower_the_precision(feature: type) -> None:
    module, batch = feature(), padded(speech_like(4_000))
    expected, _ = module(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = module(*batch)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("feature", FEATURES)
def test_windows_and_banks_stay_out_of_checkpoints_but_move_with_the_module(feature: type) -> None:
    module = feature()
    assert not module.state_dict()
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}


def test_utterance_normalization_centres_and_scales_each_utterance() -> None:
    features, lengths = LogMel(normalization=UtteranceNormalization())(*padded(speech_like(16_000), speech_like(8_000)))
    for row, count in zip(features, lengths, strict=True):
        torch.testing.assert_close(row[:count].mean(dim=0), torch.zeros(80), atol=1e-4, rtol=0.0)
        torch.testing.assert_close(row[:count].std(dim=0, correction=0), torch.ones(80), atol=1e-3, rtol=0.0)


def test_utterance_normalization_of_one_frame_or_constant_features_is_finite() -> None:
    features = UtteranceNormalization()(torch.full((2, 5, 3), 7.0), torch.tensor([5, 1]))
    torch.testing.assert_close(features[0], torch.zeros(5, 3))
    assert torch.isfinite(features).all()


def test_global_normalization_knows_all_real_frames_so_far() -> None:
    module = GlobalNormalization()
    generator = torch.Generator().manual_seed(0)
    batches = [3.0 + 2.0 * torch.randn(2, 50, 4, generator=generator) for _ in range(3)]
    lengths = torch.tensor([50, 20])
    for batch in batches:
        module(batch, lengths)
    frames = torch.cat([row[:length] for batch in batches for row, length in zip(batch, lengths, strict=True)])
    assert module.count == 210
    expected = (batches[0] - frames.mean(dim=0)) / frames.std(dim=0, correction=0)
    torch.testing.assert_close(module.eval()(batches[0], lengths), expected, atol=1e-4, rtol=1e-4)


def test_global_normalization_is_frozen_after_its_frames_and_in_evaluation() -> None:
    module = GlobalNormalization(frames=10)
    first = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0))
    module.eval()(first, torch.tensor([10]))
    assert module.count == 0
    module.train()(first, torch.tensor([10]))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module(first + 5.0, torch.tensor([10]))
    assert state["count"] == 10
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())


def test_global_normalization_is_the_identity_before_any_frame() -> None:
    batch = padded(speech_like(4_000))
    expected, _ = LogMel()(*batch)
    features, _ = LogMel(normalization=GlobalNormalization()).eval()(*batch)
    torch.testing.assert_close(features, expected, atol=0.0, rtol=0.0)


def test_global_normalization_keeps_precision_far_from_zero() -> None:
    module = GlobalNormalization()
    batch = 1000.0 + torch.randn(1, 1000, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        features = module(batch, torch.tensor([1000]))
    torch.testing.assert_close(features[0].std(dim=0, correction=0), torch.ones(2), atol=1e-3, rtol=0.0)


def test_global_normalization_travels_in_the_state_dict(tmp_path) -> None:
    batch = padded(speech_like(8_000))
    trained = LogMel(normalization=GlobalNormalization())
    trained(*batch)
    torch.save(trained.state_dict(), tmp_path / "state.pt")
    fresh = LogMel(normalization=GlobalNormalization())
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(fresh.eval()(*batch)[0], trained.eval()(*batch)[0], atol=0.0, rtol=0.0)


@pytest.mark.parametrize(
    ("slaney", "sample_rate", "mels"), [(False, 16_000, 80), (True, 16_000, 80), (False, 8_000, 20)]
)
def test_kaldi_filter_bank_equals_that_of_sherpa_onnx(slaney: bool, sample_rate: int, mels: int) -> None:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0, False
    options.frame_opts.samp_freq, options.frame_opts.remove_dc_offset = sample_rate, not slaney
    options.mel_opts.num_bins, options.mel_opts.is_librosa = mels, slaney
    options.mel_opts.low_freq, options.mel_opts.high_freq = 0 if slaney else 20, -400
    module = KaldiFilterBank(
        sample_rate, mels=mels, minimum_hertz=0.0 if slaney else 20.0, maximum_hertz=sample_rate / 2 - 400,
        snip_edges=False, remove_mean=not slaney, mel_scale="slaney" if slaney else "kaldi",
    )  # fmt: skip
    rows = [speech_like(size) for size in (16_000, 12_345, 399, 100, 5_000, 81)]
    features, lengths = module(*padded(*rows))
    for row, frames, length in zip(rows, features, lengths, strict=True):
        fbank = knf.OnlineFbank(options)
        fbank.accept_waveform(sample_rate, row.tolist())
        fbank.input_finished()
        expected = torch.tensor([fbank.get_frame(n).tolist() for n in range(fbank.num_frames_ready)])
        torch.testing.assert_close(frames[:length], expected, atol=1e-3, rtol=1e-3)
        assert not frames[length:].any()


@pytest.mark.parametrize(
    "build",
    [
        lambda: LogMel(mels=400),
        lambda: KaldiFilterBank(mels=400),
        lambda: MFCC(coefficients=41, mels=40),
        lambda: LogMel(hop_seconds=0.0),
        lambda: GlobalNormalization(frames=0),
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_what_cannot_work_is_refused(build) -> None:
    with pytest.raises(InputError, match=r"got|hold no frequency"):
        build()
