"""Rooms: impulse responses by the image method or from files, and speech played in them."""

import functools
from pathlib import Path

import numpy as np
import torch
from scipy import signal
from torch import Tensor

from asr_lightning.audio.augment import check_probability, find_audio, whole_number
from asr_lightning.audio.reading import read_audio
from asr_lightning.audio.resampling import resample
from asr_lightning.errors import InputError

SPEED = 343.0  # meters of sound in a second, at 20 °C
LONGEST_FILE = 4.0  # seconds of an impulse response; more is a recording of something else
RUMBLE = 100.0  # Hz
CACHED_RESPONSES = 256  # responses in memory, per process


class Reverberate:
    """Plays some utterances in a room [Ko et al. 2017: rooms simulated by the image method].

    The direct sound stays where it is in time, so that times of labels hold; the tail after the end of the utterance
    is cut off. The power of the utterance stays what it was; a peak beyond [-1, 1] makes all of it smaller. All
    randomness is the generator's.

    Args:
        root: Folder of impulse responses (WAV, FLAC, OGG, MP3), searched with its subfolders, as of RIRS_NOISES; None
            to simulate rooms.
        rooms: Number of rooms that are simulated, each with one position of a speaker and of a microphone. A room is
            simulated when it is first drawn.
        length: Meters of the shortest and longest wall; the height is 2.5 to 4 m.
        reverberation: Shortest and longest seconds until the sound in a room has fallen by 60 dB.
        distance: Meters between speaker and microphone, at least and at most.
        probability: Of an utterance to be played in a room.
        sample_rate: Samples per second of the audio it will be given; files are resampled to it.

    Raises:
        InputError: Unusable numbers, no audio file below `root`, or an unreadable one (when it is drawn).
    """

    def __init__(
        self,
        root: str | None = None,
        rooms: int = 200,
        length: tuple[float, float] = (3.0, 8.0),
        reverberation: tuple[float, float] = (0.2, 0.7),
        distance: tuple[float, float] = (0.5, 3.0),
        probability: float = 0.5,
        sample_rate: int = 16_000,
    ) -> None:
        check_probability("Reverberate", probability)
        for name, (low, high) in {"length": length, "reverberation": reverberation, "distance": distance}.items():
            if not 0 < low <= high:
                raise InputError(f"Reverberate needs {name} from low to high, above 0, got {(low, high)}")
        if rooms < 1:
            raise InputError(f"Reverberate needs rooms >= 1, got {rooms}")
        self.paths = None if root is None else find_audio(root, "Reverberate")
        self.rooms = rooms
        self.length, self.reverberation, self.distance = tuple(length), tuple(reverberation), tuple(distance)
        self.probability = probability
        self.sample_rate = sample_rate

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Perhaps play a waveform (S,) in a room, on the CPU."""
        if float(torch.rand((), generator=generator)) >= self.probability or not len(waveform):
            return waveform
        number = whole_number(self.rooms if self.paths is None else len(self.paths), generator)
        if self.paths is not None:
            response = _read_response(self.paths[number], self.sample_rate)
        else:
            response = _simulate(number, self.length, self.reverberation, self.distance, self.sample_rate)
        return play(waveform, response)


def play(waveform: Tensor, response: np.ndarray) -> Tensor:
    """Convolve audio (S,) with an impulse response, whose largest sample is the direct sound: (S,), as loud."""
    audio = waveform.double().numpy()
    direct = int(np.abs(response).argmax())
    reverberant = signal.fftconvolve(audio, response)[direct : direct + len(audio)]
    power = np.square(reverberant).mean()
    if power > 0:
        reverberant *= np.sqrt(np.square(audio).mean() / power)
    reverberant /= max(1.0, float(np.abs(reverberant).max()))
    return torch.from_numpy(reverberant.astype(np.float32))


@functools.lru_cache(CACHED_RESPONSES)
def _read_response(path: Path, sample_rate: int) -> np.ndarray:
    """Read an impulse response (S,), of several channels the first."""
    try:
        audio, rate = read_audio(str(path), channel=0)
    except InputError as error:
        raise InputError(f"cannot read the impulse response {path}: {error}; remove or replace it") from error
    if not np.any(audio) or len(audio) > LONGEST_FILE * rate:
        raise InputError(
            f"expected an impulse response of at most {LONGEST_FILE:g} s, found {len(audio) / rate:.2f} s"
            f"{'' if np.any(audio) else ' of silence'} in {path}; remove or replace it"
        )
    return resample(audio, rate, sample_rate).astype(np.float64)


@functools.lru_cache(CACHED_RESPONSES)
def _simulate(
    number: int,
    length: tuple[float, float],
    reverberation: tuple[float, float],
    distance: tuple[float, float],
    sample_rate: int,
) -> np.ndarray:
    """Return the impulse response of a room that is drawn by its number alone."""
    random = np.random.default_rng([number, 1])
    room = np.array([random.uniform(*length), random.uniform(*length), random.uniform(2.5, 4.0)])
    microphone = room * random.uniform(0.2, 0.8, 3)
    for _ in range(1_000):  # a position at that distance may lie outside: then draw another
        direction = random.standard_normal(3)
        source = microphone + random.uniform(*distance) * direction / np.linalg.norm(direction)
        if np.all((source > 0.1) & (source < room - 0.1)):
            break
    else:
        source = room * random.uniform(0.2, 0.8, 3)
    return without_rumble(
        image_method(room, source, microphone, random.uniform(*reverberation), sample_rate), sample_rate
    )


def without_rumble(response: np.ndarray, sample_rate: int) -> np.ndarray:
    """Take what lies below 100 Hz out of a simulated response (S,).

    Images are all positive there and add up to a tail that no room has [Allen and Berkley 1979].
    """
    return signal.sosfilt(signal.butter(2, RUMBLE, "highpass", fs=sample_rate, output="sos"), response)


def image_method(
    room: np.ndarray, source: np.ndarray, microphone: np.ndarray, reverberation: float, sample_rate: int
) -> np.ndarray:
    """Simulate the impulse response of a room with walls that all reflect alike [Allen and Berkley 1979].

    A reflection is the direct sound of an image of the source in another room of a lattice of mirrored ones; the walls
    in between have absorbed a part of it. Their absorption follows from the reverberation time by Eyring's formula. An
    image with a delay between two samples is shared by both.

    Args:
        room: (3,) meters of its length, width and height.
        source: (3,) meters from a corner.
        microphone: (3,) meters from that corner.
        reverberation: Seconds until the sound has fallen by 60 dB.
        sample_rate: Samples per second.

    Returns:
        (S,) of 1 / (4π meters) for each image, up to `reverberation` seconds after the direct sound.
    """
    volume = float(np.prod(room))
    surface = 2 * float(room[0] * room[1] + room[1] * room[2] + room[0] * room[2])
    reflection = np.exp(-0.5 * 24 * np.log(10) * volume / (SPEED * surface * reverberation))  # of pressure
    farthest = SPEED * reverberation + float(np.linalg.norm(source - microphone))
    squares, bounces = [], []  # of the way along each axis, and of walls on it
    for axis in range(3):
        count = int(np.ceil(farthest / (2 * room[axis]))) + 1
        copies = np.arange(-count, count + 1)[:, None]
        mirrored = np.array([0, 1])[None]
        distance = (1 - 2 * mirrored) * source[axis] + 2 * copies * room[axis] - microphone[axis]
        squares.append(np.square(distance).ravel())
        bounces.append((np.abs(copies - mirrored) + np.abs(copies)).ravel())
    samples = int(np.ceil(farthest / SPEED * sample_rate)) + 2
    response = np.zeros(samples)
    flat, walls = squares[1][:, None] + squares[2][None], bounces[1][:, None] + bounces[2][None]
    for square, wall in zip(squares[0], bounces[0], strict=True):  # a plane of images at a time
        meters = np.sqrt(square + flat)
        near = meters <= farthest
        if not near.any():
            continue
        meters = meters[near]
        amplitude = reflection ** (wall + walls[near]) / (4 * np.pi * meters)
        delay = meters / SPEED * sample_rate
        sample = delay.astype(np.int64)
        share = delay - sample
        response += np.bincount(sample, amplitude * (1 - share), samples)[:samples]
        response += np.bincount(sample + 1, amplitude * share, samples)[:samples]
    return response
