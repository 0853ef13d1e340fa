"""Files that a hybrid needs besides its network, made by hand for the speech of `tones`: every letter is a phone."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import kaldifst
import numpy as np

from asr_lightning.hmm.graph import decoding_graph, phone_grammar
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.hmm.store import write_alignments
from asr_lightning.models.blstm_hmm import ALIGNMENTS, DECODING_GRAPH, PHONE_GRAMMAR
from asr_lightning.text.lexicon import Lexicon
from asr_lightning.text.phones import SILENCE
from asr_lightning.text.smoothing import witten_bell
from tests.support.tones import RATE, TEXTS, attention_decoder, speak

FRAMES = 10  # of a letter: the features' hop is 10 ms, a letter takes 100 ms
WINDOW, HOP = RATE // 40, RATE // 100
KOREAN = str.maketrans("ABCDEFGH", "가나다라마바사아")


def hybrid(folder: Path | str = "", **changes: Any) -> dict[str, Any]:
    """A small hybrid, as an experiment's `model`."""
    sizes = {"input_dimension": 20, "hidden": 32, "layers": 1, "recurrent_projection": 16, "projection": 8}
    encoder = {"class_path": "asr_lightning.nn.projected_lstm.RecurrentProjectionEncoder", "init_args": sizes}
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-2}}
    config = attention_decoder(**{"encoder": encoder, "folder": str(folder), "optimizer": optimizer, **changes})
    return {**config, "class_path": "asr_lightning.models.blstm_hmm.BLSTMHMM"}


def phones_of(text: str) -> list[tuple[str, int]]:
    """The phones of a text as `tones.speak` says it, and how many frames each has."""
    frames = 1 + (len(speak(text)) - WINDOW) // HOP
    ends = [min(frames, FRAMES * (number + 1) - 1) for number in range(len(text))]  # -1: by the middles of windows
    ends[-1] = frames
    letters = [SILENCE if letter == " " else letter for letter in text]
    return [(letter, end - start) for letter, start, end in zip(letters, [0, *ends], ends, strict=False)]


def aligned(model: HiddenMarkovModel, text: str) -> list[int]:
    """The transition ids of a text: its phones' frames are shared among their three states."""
    ids = []
    for phone, frames in phones_of(text):
        for state, share in enumerate(np.array_split(np.arange(frames), 3)):
            triphone = (0, model.phone_ids[phone], 0, state)
            ids += [model.transition_id(triphone, stays=True)] * (len(share) - 1)
            ids.append(model.transition_id(triphone, stays=False))
    return ids


def write_states(
    folder: Path, texts: Iterable[str] = TEXTS, spoken: Mapping[str, str] | None = None, korean: bool = False
) -> Path:
    """Write the folder of a hybrid.

    Args:
        folder: The folder to write.
        texts: Texts whose words are in the lexicon and the language model.
        spoken: Texts of utterances that were aligned, by their names; those of `batch_of()` by default.
        korean: Write words with a syllable for every letter.
    """
    sentences = [text.split() for text in texts]
    words = {word for sentence in sentences for word in sentence}
    table = KOREAN if korean else {}
    model = HiddenMarkovModel.monophone(Lexicon({word.translate(table): (tuple(word),) for word in sorted(words)}))
    spoken = {f"tone-{number}": text for number, text in enumerate(TEXTS)} if spoken is None else spoken
    alignments = {id: aligned(model, text) for id, text in spoken.items()}
    counts = np.bincount([transition for ids in alignments.values() for transition in ids], minlength=len(model.pdf_of))
    model = model.with_counts(counts.astype(float))
    model.write(folder)
    write_alignments(folder / ALIGNMENTS, alignments.items())
    grammar = phone_grammar([model.phone_ids[phone] for phone, _ in phones_of(text)] for text in texts)
    kaldifst.arcsort(grammar, sort_type="ilabel")
    grammar.write(str(folder / PHONE_GRAMMAR))
    ngram = witten_bell([[word.translate(table) for word in sentence] for sentence in sentences], 2)
    decoding_graph(model, ngram).write(str(folder / DECODING_GRAPH))
    return folder
