"""espeak-ng, the speech synthesiser of the embedded corpus, spoken to through a worker process.

espeak-ng carries hidden state (glottal phase, echo, random numbers) from one utterance into the next, and neither
resetting its parameters nor `espeak_Terminate` clears it: the same sentence comes out hundreds of samples longer or
shorter after another one. So a worker process forks for every utterance; the child loads the library, speaks once and
exits. The worker imports no torch, which makes forking cheap (some 6 ms an utterance, speech included) and safe.
"""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_lightning.errors import InputError

SAMPLE_RATE = 22_050  # Hz, of every voice of espeak-ng
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: no sound card, the callback gets the samples
_OPTIONS = 0x0001 | 0x8000  # phoneme events | do not exit the process on errors
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_CHARACTERS_UTF8 = 1
_EVENT_END, _EVENT_PHONEME = 0, 7  # espeak_EVENT_TYPE
# An embedded command: echo at 1/256. The echo of some voices would fill the closures of plosives with sound.
_NO_ECHO = "\x011H "
# Ctrl-C of a terminal reaches workers too; they end when their input does.
_WORKER = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from data_modules.espeak import serve; serve()"


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds, rounded; `sample` is exact
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """Speech of espeak-ng.

    Attributes:
        samples: (S,) int16 at 22,050 Hz.
        marks: Start sample and espeak mnemonic of every phone, stress marks included, in order, and a number
            that all phones of a word share.
    """

    samples: np.ndarray
    marks: list[tuple[int, str, int]]


class Espeak:
    """A worker process that speaks one utterance at a time; what it says depends on the arguments alone.

    Use it as a context manager. Not for two threads at once. Needs `os.fork`, so Linux or macOS.

    Raises:
        InputError: The espeak-ng library or its data cannot be loaded.
    """

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def __enter__(self) -> "Espeak":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()  # it holds nothing worth saving
        self._process.wait()
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass

    def speak(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int, seed: int) -> Speech:
        """Synthesize one utterance.

        Args:
            text: Plain text; commas and question marks shape pauses and melody.
            voice: Name and variant, as `gmw/en-US+f3`.
            rate: Words per minute.
            pitch: 0 to 99, 50 is the voice's own.
            pitch_range: 0 to 99, 50 is the voice's own.
            seed: Of espeak's random numbers (breath, jitter).

        Raises:
            InputError: espeak-ng cannot be loaded, does not know the voice, or died.
        """
        request = dict(text=text, voice=voice, rate=rate, pitch=pitch, pitch_range=pitch_range, seed=seed)
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the empty answer below says so
        line = self._process.stdout.readline()
        if not line:
            raise self._death(request)
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(
                f"espeak-ng does not work: {answer['error']}. "
                "The embedded corpus needs it; install it with `pip install --force-reinstall espeakng-loader`."
            )
        content = self._process.stdout.read(2 * answer["samples"])
        if len(content) < 2 * answer["samples"]:  # the child died while it wrote
            raise self._death(request)
        samples = np.frombuffer(content, dtype=np.int16)
        return Speech(samples, [(sample, phone, word) for sample, phone, word in answer["marks"]])

    def _death(self, request: dict) -> InputError:
        return InputError(
            f"the espeak-ng worker died with exit code {self._process.wait()} at {request}: is there enough memory? "
            "Start again: what was not complete is made anew"
        )


def serve() -> None:
    """Answer requests on standard input, a JSON line each, until it closes; the body of a worker process."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer_and_exit(json.loads(line))
        _, status = os.waitpid(child, 0)
        if status != 0:  # a crash inside the library: the closed pipe tells the parent
            os._exit(1)


def _answer_and_exit(request: dict) -> None:
    """In a forked child: write a JSON line and the samples to standard output, and exit."""
    code = 1
    try:
        try:
            speech = _speak_once(**request)
            header: dict = {"samples": len(speech.samples), "marks": speech.marks}
            body = speech.samples.tobytes()
        except (OSError, ImportError) as error:
            header, body = {"error": f"{type(error).__name__}: {error}"}, b""
        with open(1, "wb", closefd=False) as output:
            output.write(json.dumps(header).encode() + b"\n" + body)
        code = 0
    except BrokenPipeError:
        pass  # the parent has closed the pipe
    finally:
        os._exit(code)


def _speak_once(text: str, voice: str, rate: int, pitch: int, pitch_range: int, seed: int) -> Speech:
    import espeakng_loader  # here, so that its absence reaches the user as an InputError

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    data = Path(espeakng_loader.get_data_path())
    if library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _OPTIONS) != SAMPLE_RATE:
        raise OSError(f"no usable voice data in {data}")
    chunks: list[np.ndarray] = []
    marks: list[tuple[int, str, int]] = []

    def receive(wave, count: int, events) -> int:  # type: ignore[no-untyped-def]
        if count > 0:
            chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while (event := events[index]).type != _EVENT_END:
            if event.type == _EVENT_PHONEME:
                marks.append((event.sample, bytes(event.id.string).decode(), event.text_position))
            index += 1
        return 0

    callback = _Callback(receive)  # kept in a variable: ctypes does not keep it alive
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise OSError(f"no voice {voice!r} in {data}")
    for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    library.espeak_ng_SetRandSeed(seed)  # after espeak_Initialize, which seeds with the time of day
    encoded = (_NO_ECHO + text).encode() + b"\0"
    library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _CHARACTERS_UTF8, None, None)
    library.espeak_Synchronize()
    return Speech(np.concatenate(chunks), marks)
