import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import soundfile
import torch

from asr_lightning.audio.resampling import resample
from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.models.recognizer import Recognizer
from tests.support.recordings import Recordings, write_recordings
from tests.support.small_hybrid import Made, make

LAYERS = {"input_dimension": 20, "hidden": 12, "layers": 1, "channels": 2}
CONFIG = {
    "class_path": "asr_lightning.models.rnn_transducer.RNNTransducer",
    "init_args": {
        "tokenizer": {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"},
        "features": {"class_path": "asr_lightning.audio.features.LogMel", "init_args": {"mels": 20}},
        "encoder": {"class_path": "asr_lightning.nn.recurrent.LSTMEncoder", "init_args": LAYERS},
        "predictor": {"class_path": "asr_lightning.models.rnn_transducer.LSTMPredictor", "init_args": {"dimension": 8}},
        "joint_dimension": 8,
        "search": {"class_path": "asr_lightning.decoding.transducer.TransducerSearch", "init_args": {"max_symbols": 2}},
    },
}


@pytest.fixture
def config() -> dict[str, Any]:
    """The `model` part of an experiment, to be changed at will."""
    return copy.deepcopy(CONFIG)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained recognizer for 16 kHz that is not silent: its transcripts depend on the audio."""
    torch.manual_seed(1)
    recognizer = build_recognizer(CONFIG)
    with torch.no_grad():
        recognizer.joint.output.weight.mul_(20)
        recognizer.joint.output.bias.zero_()
        recognizer.encoder_projection.weight.mul_(5)
    content = {
        "state_dict": recognizer.state_dict(),
        "hyper_parameters": dict(recognizer.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A hybrid that has learned a little, its corpus and all else that its commands read."""
    root = tmp_path_factory.mktemp("hybrid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_LIGHTNING_CACHE", str(root / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "1")  # what Lightning sets is forgotten behind it
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr("sys.argv", ["lightning"])
        return make(root)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """Sound files of several formats and rates, by name."""
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="session")
def recognizer(checkpoint: Path) -> Recognizer:
    """The recognizer of `checkpoint`, not to be changed."""
    return load_recognizer(checkpoint)


@pytest.fixture(scope="session")
def expected_texts(recognizer: Recognizer, recordings: Recordings) -> dict[str, str]:
    """The transcript of each file alone, resampled here."""
    texts = {}
    for name, path in recordings.items():
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        resampled = torch.from_numpy(resample(audio.mean(axis=1), rate, 16_000))
        texts[name] = recognizer.transcribe(Batch.collate([Utterance(name, resampled, 16_000)]))[0]
    assert len(set(texts.values())) == len(texts), "the test needs a recognizer that tells the files apart"
    return texts
