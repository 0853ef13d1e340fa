import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from asr_lightning.audio.augment import (
    AddMusan,
    AddNoise,
    InTurn,
    SpecAugment,
    Telephone,
    colored_noise,
    read_excerpt,
)
from asr_lightning.errors import InputError
from asr_lightning.models.instantiation import instantiate
from data_modules.librispeech import LibriSpeechDataModule


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def snr_db(clean: torch.Tensor, noisy: torch.Tensor) -> float:
    return float(10.0 * torch.log10(clean.square().mean() / (noisy - clean).square().mean()))


def test_specaugment_masks_stay_within_their_limits() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([400, 200, 60, 10, 1] * 40)
    augment = SpecAugment(time_mask_frames=15, time_mask_fraction=0.1, frequency_masks=1, frequency_mask_bands=8)
    features = torch.ones(200, 400, 20)
    masked = augment(features, lengths) == 0.0
    frames = masked.all(dim=2)  # (B, T)
    bands = masked.all(dim=1)  # (B, D)
    assert torch.equal(masked, frames.unsqueeze(2) | bands.unsqueeze(1))
    assert not frames[torch.arange(400) >= lengths.unsqueeze(1)].any()  # never beyond the end
    limits = 2 * (lengths * 0.1).long().clamp(max=15)
    assert (frames.sum(dim=1) <= limits).all()
    assert frames.sum(dim=1).max() > 20  # two masks of up to 15 do reach this in 40 draws
    assert frames[lengths == 60].sum(dim=1).max() > 6  # more than one mask of 6
    assert frames[lengths == 400, :100].any()  # early and late
    assert frames[lengths == 400, -100:].any()
    assert bands.sum(dim=1).max() == 8
    assert bands.any(dim=0).all()  # every band, the outermost too, is masked some time
    assert (features == 1.0).all()  # the input is left alone


def test_specaugment_widths_are_uniform() -> None:
    torch.manual_seed(0)
    augment = SpecAugment(time_masks=1, time_mask_frames=4, time_mask_fraction=1.0, frequency_masks=0)
    masked = augment(torch.ones(5_000, 50, 27), torch.full((5_000,), 50)) == 0.0
    widths = masked[:, :, 0].sum(dim=1).bincount(minlength=5)
    assert len(widths) == 5
    assert ((widths - 1_000).abs() < 150).all()  # 5 standard deviations are 141


def test_specaugment_masks_grow_over_the_first_epochs() -> None:
    sizes = {"time_masks": 1, "time_mask_frames": 20, "time_mask_fraction": 0.2, "frequency_masks": 1}
    growing = SpecAugment(**sizes, frequency_mask_bands=9, warmup_epochs=4)  # type: ignore[arg-type]
    full = SpecAugment(**sizes, frequency_mask_bands=9)  # type: ignore[arg-type]
    features, lengths = torch.ones(400, 60, 20), torch.tensor([60, 50] * 200)
    widest = []
    for growing.epoch in range(6):
        torch.manual_seed(growing.epoch)
        masked = growing(features, lengths) == 0.0
        frames, bands = masked.all(dim=2).sum(dim=1), masked.all(dim=1).sum(dim=1)
        widest.append((int(frames[::2].max()), int(frames[1::2].max()), int(bands.max())))
        torch.manual_seed(growing.epoch)
        assert torch.equal(masked, full(features, lengths) == 0.0) == (growing.epoch >= 4)
    # Fifths of 60 and 50 frames are 12 and 10; in quarters, rounded down.
    assert widest == [(0, 0, 0), (3, 2, 2), (6, 5, 4), (9, 7, 6), (12, 10, 9), (12, 10, 9)]


def test_specaugment_does_nothing_in_evaluation_mode_or_without_masks() -> None:
    features, lengths = torch.ones(2, 50, 30), torch.tensor([50, 20])
    assert SpecAugment().eval()(features, lengths) is features
    assert torch.equal(SpecAugment(time_masks=0, frequency_masks=0)(features, lengths), features)


def test_specaugment_refuses_masks_wider_than_the_features() -> None:
    with pytest.raises(InputError, match="27 is wider than the features, which have 13"):
        SpecAugment()(torch.ones(1, 50, 13), torch.tensor([50]))
    with pytest.raises(InputError, match="-1"):
        SpecAugment(time_masks=-1)
    with pytest.raises(InputError, match=r"warmup_epochs\)=\(2, 100, 2, 27, -3\)"):
        SpecAugment(warmup_epochs=-3)


def test_noise_has_the_wanted_ratio_and_is_repeatable() -> None:
    speech = 0.05 * torch.randn(16_000, generator=generator(1))
    add_noise = AddNoise(snr_db=(12.0, 12.0), probability=1.0)
    noisy = add_noise(speech, generator(2))
    assert snr_db(speech, noisy) == pytest.approx(12.0, abs=0.01)
    assert torch.equal(noisy, add_noise(speech, generator(2)))
    assert not torch.equal(noisy, add_noise(speech, generator(3)))


def test_noise_ratios_cover_their_range_and_probability_is_kept() -> None:
    speech = 0.05 * torch.randn(400, generator=generator(1))
    add_noise, random = AddNoise(snr_db=(5.0, 25.0), probability=0.3), generator()
    results = [add_noise(speech, random) for _ in range(1_000)]
    ratios = [snr_db(speech, noisy) for noisy in results if noisy is not speech]
    assert 240 <= len(ratios) <= 360
    assert 5.0 - 1e-3 <= min(ratios) < 6.0
    assert 24.0 < max(ratios) <= 25.0 + 1e-3


def test_noise_leaves_silence_alone_and_never_clips() -> None:
    add_noise = AddNoise(snr_db=(0.0, 0.0), probability=1.0)
    assert not add_noise(torch.zeros(1_000), generator()).any()
    square_wave = torch.ones(16_000)
    assert add_noise(square_wave, generator()).abs().max() == pytest.approx(1.0)


def test_colored_noise_falls_between_white_and_brown() -> None:
    slopes = []
    frequency = np.log(np.arange(1, 2_000))
    for seed in range(20):
        power = torch.fft.rfft(colored_noise(4_000, generator(seed))).abs().square().numpy()[1:2_000]
        slopes.append(np.polyfit(frequency, np.log(power), 1)[0])
    assert -2.2 < min(slopes) < -1.5
    assert -0.5 < max(slopes) < 0.2


@pytest.mark.parametrize(("rate", "seconds"), [(16_000, 3.0), (16_000, 0.1), (8_000, 3.0), (44_100, 0.1)])
def test_noise_from_files_is_cut_looped_and_resampled(tmp_path, rate: int, seconds: float) -> None:
    (tmp_path / "below").mkdir()
    times = np.arange(int(rate * seconds)) / rate
    tone = np.sin(2 * np.pi * 500.0 * times)  # a whole number of periods: loops without a seam
    soundfile.write(tmp_path / "below" / "tone.wav", np.stack([tone, tone], axis=1), rate)
    speech = 0.01 * torch.randn(8_000, generator=generator(1))
    noisy = AddNoise(str(tmp_path), snr_db=(20.0, 20.0), probability=1.0)(speech, generator(4))
    assert noisy.shape == speech.shape
    assert snr_db(speech, noisy) == pytest.approx(20.0, abs=0.01)
    spectrum = torch.fft.rfft(noisy - speech).abs()
    assert int(spectrum.argmax()) == pytest.approx(250, abs=1)  # 500 Hz of 2 Hz bins
    assert spectrum[245:256].square().sum() > 0.95 * spectrum.square().sum()


def test_noise_excerpts_and_files_vary(tmp_path) -> None:
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, np.full(4_000, 0.1) * (1 if name == "a.wav" else -1), 16_000)
    add_noise = AddNoise(str(tmp_path), probability=1.0)
    speech = 0.01 * torch.randn(1_000, generator=generator(1))
    signs = {float((add_noise(speech, generator(seed)) - speech).mean().sign()) for seed in range(20)}
    assert signs == {1.0, -1.0}
    ramp = np.linspace(0.0, 0.5, 16_000)
    soundfile.write(tmp_path / "a.wav", ramp, 16_000)
    (tmp_path / "b.flac").unlink()
    path = tmp_path / "a.wav"
    starts = {round(float(read_excerpt(path, 100, 16_000, generator(seed))[0]), 3) for seed in range(20)}
    assert len(starts) > 15


def test_unusable_noise_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        AddNoise(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds none"):
        AddNoise(str(tmp_path))
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    with pytest.raises(InputError, match=r"broken\.wav"):
        AddNoise(str(tmp_path), probability=1.0)(torch.ones(10), generator())
    (tmp_path / "broken.wav").unlink()
    loud = tmp_path / "loud.wav"
    for value in (np.nan, np.inf, 1e19):
        soundfile.write(loud, np.array([0.1, value] * 500, np.float32), 16_000, subtype="FLOAT")
        with pytest.raises(InputError, match=r"loud\.wav: the audio has samples"):
            AddNoise(str(tmp_path), probability=1.0)(torch.ones(10), generator())
    soundfile.write(loud, np.full(1_000, 0.1), 16_000)
    loud.write_bytes(loud.read_bytes()[:1_000])
    with pytest.raises(InputError, match=r"loud\.wav: cut off"):
        AddNoise(str(tmp_path), probability=1.0)(torch.ones(10), generator())
    with pytest.raises(InputError, match="probability=2"):
        AddNoise(probability=2.0)
    with pytest.raises(InputError, match="snr_db"):
        AddNoise(snr_db=(30.0, 10.0))


def musan(root: Path) -> None:
    """Tones of another frequency for each kind, in the folders of MUSAN."""
    for kind, hertz in (("noise", 1_000), ("music", 2_000), ("speech", 3_000)):
        (root / kind / "free-sound").mkdir(parents=True)
        for number in range(3):
            times = np.arange(32_000) / 16_000
            tone = (0.05 + 0.1 * number) * np.sin(2 * np.pi * (hertz + 100 * number) * times)
            soundfile.write(root / kind / "free-sound" / f"{kind}-{number}.wav", tone, 16_000)


def test_musan_is_added_at_the_ratio_of_its_kind(tmp_path: Path) -> None:
    musan(tmp_path)
    add = AddMusan(str(tmp_path), noise_db=(3, 3), music_db=(9, 9), babble_db=(17, 17), probability=1.0)
    speech = 0.01 * torch.randn(16_000, generator=generator(1))
    kinds = set()
    for seed in range(12):
        noise = add(speech, generator(seed)) - speech
        hertz = int(torch.fft.rfft(noise).abs().argmax())
        kind = hertz // 1_000
        kinds.add(kind)
        assert snr_db(speech, speech + noise) == pytest.approx({1: 3.0, 2: 9.0, 3: 17.0}[kind], abs=0.01)
        assert torch.equal(add(speech, generator(seed)) - speech, noise)
    assert kinds == {1, 2, 3}


def test_babble_is_several_voices_alike(tmp_path: Path) -> None:
    musan(tmp_path)
    for kind in ("noise", "music"):
        shutil.rmtree(tmp_path / kind)
    add = AddMusan(str(tmp_path), talkers=(7, 7), probability=1.0)
    speech = 0.01 * torch.randn(16_000, generator=generator(1))
    spectrum = torch.fft.rfft(add(speech, generator(2)) - speech).abs()
    voices = [float(spectrum[hertz]) for hertz in (3_000, 3_100, 3_200)]
    assert min(voices) > 0 and sum(voice > 0.05 * max(voices) for voice in voices) >= 2


@pytest.mark.parametrize("codec", ["mu-law", "a-law", "gsm"])
def test_a_telephone_passes_its_band_only(codec: str) -> None:
    telephone = Telephone([codec], probability=1.0)  # type: ignore[list-item]
    for hertz, passes in ((100, False), (1_000, True), (3_000, True), (5_000, False)):
        tone = 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(16_000) / 16_000)
        output = telephone(tone, generator())
        assert output.shape == tone.shape
        if passes:
            assert 0.5 < float(output.square().mean() / tone.square().mean()) < 1.5
        else:
            assert float(torch.fft.rfft(output)[hertz].abs() / torch.fft.rfft(tone)[hertz].abs()) < 0.1
    noise = 0.1 * torch.randn(16_000, generator=generator())
    upper = torch.fft.rfft(telephone(noise, generator())).abs()[4_300:]
    assert float(upper.square().sum()) < 1e-4 * float(torch.fft.rfft(noise).abs()[4_300:].square().sum())


def test_mu_law_is_that_of_its_formula() -> None:
    """G.711 approximates this curve by lines, so each sample is one of 256 levels near it."""
    speech = 0.2 * torch.randn(8_000, generator=generator(5)).clamp(-2, 2)
    output = Telephone(probability=1.0, sample_rate=8_000)(speech, generator()).numpy()
    assert len(np.unique(output)) <= 256
    passed = signal.sosfilt(signal.butter(4, (300, 3_400), "bandpass", fs=8_000, output="sos"), speech.numpy())
    curve = np.sign(passed) * np.log1p(255 * np.abs(passed)) / np.log(256)
    expected = np.sign(curve) * (256 ** np.abs(np.round(curve * 128) / 128) - 1) / 255
    error, law = np.abs(output - passed), np.abs(expected - passed)
    assert error.mean() < 2 * law.mean() and np.corrcoef(output, passed)[0, 1] > 0.999


def test_steps_are_applied_in_turn() -> None:
    steps = [lambda audio, random: audio + torch.rand((), generator=random), lambda audio, random: 2 * audio]
    expected = 2 * (torch.zeros(3) + torch.rand((), generator=generator(7)))
    assert torch.equal(InTurn(steps)(torch.zeros(3), generator(7)), expected)


def test_an_experiment_names_them_by_class(tmp_path: Path) -> None:
    musan(tmp_path)
    steps = [
        {"class_path": "asr_lightning.audio.rooms.Reverberate", "init_args": {"rooms": 2, "probability": 1.0}},
        {
            "class_path": "asr_lightning.audio.augment.AddMusan",
            "init_args": {"root": str(tmp_path), "noise_db": [0, 5]},
        },
        {"class_path": "asr_lightning.audio.augment.Telephone", "init_args": {"codecs": ["mu-law", "gsm"]}},
    ]
    noise = {"class_path": "asr_lightning.audio.augment.InTurn", "init_args": {"steps": steps}}
    corpus = {
        "class_path": "data_modules.librispeech.LibriSpeechDataModule",
        "init_args": {"root": ".", "noise": noise},
    }
    module, _ = instantiate(corpus, LibriSpeechDataModule, "a corpus")
    assert isinstance(module.noise, InTurn) and isinstance(module.noise.steps[1], AddMusan)
    speech = 0.1 * torch.randn(4_000, generator=generator())
    assert torch.equal(module.noise(speech, generator(1)), module.noise(speech, generator(1)))
