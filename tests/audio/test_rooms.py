"""Rooms against a sum over images one by one, Eyring's formula, and planted impulse responses."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr_lightning.audio.rooms import SPEED, Reverberate, image_method, play, without_rumble
from asr_lightning.errors import InputError

ROOM, SOURCE, MICROPHONE = np.array([3.1, 4.3, 2.6]), np.array([1.0, 2.0, 1.5]), np.array([2.2, 1.1, 1.2])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_by_one(reverberation: float, rate: int) -> np.ndarray:
    """The response by repeated mirroring of the source at the walls: each image is made from the previous one."""
    volume = math.prod(ROOM)
    surface = 2 * (ROOM[0] * ROOM[1] + ROOM[1] * ROOM[2] + ROOM[0] * ROOM[2])
    absorption = 1 - math.exp(-24 * math.log(10) * volume / (SPEED * surface * reverberation))  # of power, by Eyring
    reflection = math.sqrt(1 - absorption)
    farthest = SPEED * reverberation + float(np.linalg.norm(SOURCE - MICROPHONE))
    axes = []
    for axis in range(3):
        images = {}
        for first in (0.0, ROOM[axis]):  # the wall that is met first, then the other one, in turn
            position, wall, bounces = SOURCE[axis], first, 0
            while abs(position - MICROPHONE[axis]) <= farthest + 2 * ROOM[axis]:
                images[round(position, 9)] = bounces
                position, wall, bounces = 2 * wall - position, ROOM[axis] - wall, bounces + 1
        axes.append(list(images.items()))
    response = np.zeros(math.ceil(farthest / SPEED * rate) + 2)
    for image in itertools.product(*axes):
        meters = math.dist([position for position, _ in image], MICROPHONE)
        if meters <= farthest:
            amplitude = reflection ** sum(bounces for _, bounces in image) / (4 * math.pi * meters)
            delay = meters / SPEED * rate
            response[int(delay)] += amplitude * (1 - delay % 1)
            response[int(delay) + 1] += amplitude * (delay % 1)
    return response


def test_the_sum_over_images_is_that_of_mirroring_one_by_one() -> None:
    np.testing.assert_allclose(
        image_method(ROOM, SOURCE, MICROPHONE, 0.08, 16_000), one_by_one(0.08, 16_000), rtol=1e-9, atol=1e-12
    )


def test_the_direct_sound_comes_first_and_as_loud_as_its_distance_says() -> None:
    response = image_method(ROOM, SOURCE, MICROPHONE, 0.2, 16_000)
    meters = float(np.linalg.norm(SOURCE - MICROPHONE))
    first = int(np.flatnonzero(response)[0])
    assert first == int(meters / SPEED * 16_000)
    assert response[first : first + 2].sum() == pytest.approx(1 / (4 * np.pi * meters), rel=1e-6)


@pytest.mark.parametrize("reverberation", [0.25, 0.5])
def test_sound_falls_in_about_the_time_that_was_wished(reverberation: float) -> None:
    summed = image_method(np.array([5.0, 4.0, 3.0]), SOURCE, MICROPHONE, reverberation, 8_000)
    response = without_rumble(summed, 8_000)
    left = 10 * np.log10(np.cumsum(np.square(response)[::-1])[::-1] / np.square(response).sum())  # Schroeder's integral
    begin, end = np.argmax(left < -5), np.argmax(left < -25)
    assert 3 * (end - begin) / 8_000 == pytest.approx(reverberation, rel=0.2)


def test_a_room_keeps_length_power_and_the_place_of_the_direct_sound() -> None:
    click = torch.zeros(16_000)
    click[1_000] = 0.01
    output = Reverberate(rooms=3, probability=1.0)(click, generator(3))
    assert output.shape == click.shape and int(output.abs().argmax()) in (1_000, 1_001)
    assert not output[:999].abs().max() > 1e-6
    assert float(output.square().mean()) == pytest.approx(float(click.square().mean()), rel=1e-4)
    assert float(output[1_200:].square().sum()) > 0.05 * float(output.square().sum())  # a tail


def test_the_same_generator_gives_the_same_room() -> None:
    speech = 0.1 * torch.randn(8_000, generator=generator(1))
    reverberate = Reverberate(rooms=5, probability=0.7)
    results = [reverberate(speech, generator(seed)) for seed in range(12)]
    again = [Reverberate(rooms=5, probability=0.7)(speech, generator(seed)) for seed in range(12)]
    assert all(torch.equal(first, second) for first, second in zip(results, again, strict=True))
    assert 2 <= sum(torch.equal(result, speech) for result in results) <= 8
    assert len({float(result.sum()) for result in results}) > 3


def test_responses_from_files_are_played(tmp_path: Path) -> None:
    response = np.zeros(4_800)
    response[[480, 1_440]] = 0.5, 0.25  # at 48 kHz: an echo of half the size after 20 ms
    (tmp_path / "below").mkdir()
    soundfile.write(tmp_path / "below" / "room.wav", np.stack([response, 0 * response], axis=1), 48_000)
    tone = torch.from_numpy(np.sin(2 * np.pi * 400 * np.arange(8_000) / 16_000)).float() * 0.3
    output = Reverberate(str(tmp_path), probability=1.0)(tone, generator())
    expected = tone + 0.5 * torch.nn.functional.pad(tone, (320, 0))[:8_000]
    expected *= (tone.square().mean() / expected.square().mean()).sqrt()
    torch.testing.assert_close(output[100:-100], expected[100:-100], atol=3e-3, rtol=0)


def test_silence_stays_silence_and_full_scale_is_kept() -> None:
    assert not play(torch.zeros(100), np.array([0.0, 1.0, 0.5])).any()
    loud = torch.sign(torch.randn(4_000, generator=generator()))
    assert float(play(loud, np.array([1.0, 0.9, -0.8])).abs().max()) <= 1.0


def test_unusable_rooms_are_refused(tmp_path: Path) -> None:
    for wrong in ({"rooms": 0}, {"length": (5, 3)}, {"reverberation": (0, 1)}, {"probability": 2.0}):
        with pytest.raises(InputError, match="Reverberate needs"):
            Reverberate(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds none"):
        Reverberate(str(tmp_path))
    soundfile.write(tmp_path / "music.wav", np.full(80_000, 0.1), 16_000)
    with pytest.raises(InputError, match=r"5\.00 s in .*music\.wav"):
        Reverberate(str(tmp_path), probability=1.0)(torch.ones(10), generator())
