"""Hybrid of a network and hidden Markov models: the baseline of Lim et al. 2019, 2.3 [Bourlard and Morgan 1994].

The network computes the probabilities of the tied states of every frame. It is trained on alignments, and then on
sentences by lattice-free MMI. `asr hybrid` makes its states, lexicon, alignments and graphs.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import kaldifst
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.files import regular
from asr_lightning.hmm.frame_alignment import in_seconds, phone_runs, word_runs
from asr_lightning.hmm.graph import as_graph, expand_to_states, numerator_transducer
from asr_lightning.hmm.model import HiddenMarkovModel, read_hmm
from asr_lightning.hmm.openfst import check_fst
from asr_lightning.hmm.search import FoundSentence, GraphSearch
from asr_lightning.hmm.store import AlignmentStore
from asr_lightning.losses.graphs import Graph, GraphBatch
from asr_lightning.losses.lattice_free_mmi import lattice_free_mmi_loss
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.nn.axes import Axis, Fixed, axis
from asr_lightning.nn.sequences import real_frames
from asr_lightning.text.lexicon import capitals
from asr_lightning.text.phones import SILENCE
from asr_lightning.text.timed_words import Word

ALIGNMENTS, PHONE_GRAMMAR, DECODING_GRAPH = "alignments.sqlite", "phone_grammar.fst", "HCLG.fst"
UNALIGNED = -1  # pdf of frames without alignment
PRIOR_TOLERANCE = 1e-3  # of log priors, which processors round differently


class BLSTMHMM(Recognizer):
    """Hybrid recognizer: scores of tied states for every frame, and a search in a graph of states, lexicon and grammar.

    Args:
        folder: Output of `asr hybrid`: states, lexicon, alignments, graphs.
        search: Search in the graph.
        mmi_weight: Share in the loss of lattice-free MMI, from 0 to 1; the rest is the cross-entropy of frames. A
            phone grammar weights its graphs of the transcript's pronunciations and of all phone sequences.
        mmi_scale: Of log likelihoods in lattice-free MMI.
        **recognizer: Arguments of `Recognizer`, but for `ctc_weight`. The encoder must have a frame for every frame of
            the alignments, which is every feature frame, or every third one of states that were made with
            `--subsampling 3`; the features must have the window and hop of the features that were aligned.

    Raises:
        InputError: The folder cannot be read, or a number is out of its range.
    """

    def __init__(
        self,
        folder: str,
        search: GraphSearch | None = None,
        mmi_weight: float = 0.0,
        mmi_scale: float = 0.3,
        **recognizer: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**recognizer)
        if not (0.0 <= mmi_weight <= 1.0 and mmi_scale > 0.0):
            raise InputError(
                f"expected a mmi_weight from 0 to 1 and a mmi_scale above 0, got {mmi_weight} and {mmi_scale}"
            )
        if self.ctc is not None:
            raise InputError(f"a BLSTMHMM has no CTC output: leave ctc_weight at 0, got {self.ctc_weight}")
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(
                f"no states of a hybrid at {folder} (looked for {self.folder.absolute()}); make them with "
                "`asr hybrid prepare`"
            )
        self.search = search or GraphSearch()
        self.mmi_weight = mmi_weight
        self.mmi_scale = mmi_scale
        self._compared = False  # alignments with features
        self.states = read_hmm(self.folder)
        self.output = nn.Linear(self.encoder.dimension, self.states.pdfs)
        self.log_priors: Tensor
        self.register_buffer("log_priors", log_priors(self.states))

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the output, which has a row per tied state.

        States are the same if phones, tree and counts are the same, so that no weights are selected from a teacher with
        other states. The priors of a checkpoint show whether the folder of its states has changed since.
        """
        same = torch.allclose(self.log_priors.cpu(), log_priors(self.states), atol=PRIOR_TOLERANCE)
        since = "" if same else ", changed after training"
        states = axis(Fixed(self.states.pdfs, f"tied states (checksum {self.states.checksum():08x}{since})"))
        return {
            "output.weight": (states, self.encoder.output_axis()),
            "output.bias": (states,),
            "log_priors": (states,),
        }

    def fingerprints(self) -> dict[str, str]:
        """Return a checksum of the tied states, since the files in a folder may change."""
        digest = hashlib.sha256("\n".join(self.states.phones).encode())
        digest.update(regular(self.folder / "tree").read_bytes())
        if self.states.subsampling > 1:
            digest.update(str(self.states.subsampling).encode())
        return {"tied states": digest.hexdigest()[:16]}

    def forward(self, audio: Tensor, audio_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode audio (B, S) as (B, T, D), with the number of real frames of each row, (B,).

        Raises:
            InputError: The encoder has another number of frames than the alignments.
        """
        features, lengths = self.featurize(audio, audio_lengths)
        encoded, encoded_lengths = self.encoder(features, lengths)
        step = self.states.subsampling
        expected = (lengths + step - 1) // step
        if encoded.shape[1] != self._kept(features.shape[1]) and not torch.equal(encoded_lengths, expected):
            each = "each feature frame" if step == 1 else f"{step} feature frames"
            raise InputError(
                f"the states in {self.folder} have a frame for {each}, but the {type(self.encoder).__name__} made "
                f"{encoded.shape[1]} of {features.shape[1]}: give it a subsampling of {step}, or make the states again "
                "with `asr hybrid prepare --subsampling`"
            )
        return encoded, encoded_lengths

    def _kept(self, frames: int) -> int:
        """Return the number of states of so many feature frames."""
        return -(-frames // self.states.subsampling)

    def log_likelihoods(self, encoded: Tensor) -> Tensor:
        """Return log likelihoods (B, T, pdfs) of frames (B, T, D), up to a constant of each frame."""
        return self.output(encoded).float().log_softmax(dim=2) - self.log_priors

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the pdfs (B, T) of the frames, and their number (B,), 0 for an utterance without alignment.

        Raises:
            InputError: An alignment has another number of frames than the features of its utterance. On a GPU only the
                first batch is compared; later, the loss of such an utterance is infinite.
        """
        alignments = [self._alignments.get(id) for id in batch.ids]
        if batch.audio_lengths.device.type == "cpu" or not self._compared:
            self._compare(batch, alignments)
        rows = [torch.from_numpy(self.states.pdf_of[[] if ids is None else ids]) for ids in alignments]
        lengths = torch.tensor([len(row) for row in rows])
        targets = pad_sequence(rows, batch_first=True, padding_value=UNALIGNED)
        return targets.to(self.device, non_blocking=True), lengths.to(self.device, non_blocking=True)

    def _compare(self, batch: Batch, alignments: list[np.ndarray | None]) -> None:
        frames = self.features.frame_lengths(batch.audio_lengths).tolist()
        for id, ids, count in zip(batch.ids, alignments, frames, strict=True):
            if ids is not None and len(ids) != self._kept(count):
                raise InputError(
                    f"{id} was aligned with {len(ids)} frames, but its features have {self._kept(count)}: use the "
                    "window and hop of `asr hybrid` in the features and no `speed_factors` in the data, or align again"
                )
        self._compared = True

    def decoder_loss(self, encoded: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """Return the mean cross-entropy of the frames of each utterance, (B,); infinite without their pdfs."""
        frames = encoded.shape[1]
        targets = functional.pad(targets[:, :frames], (0, max(0, frames - targets.shape[1])), value=UNALIGNED)
        losses = functional.cross_entropy(
            self.output(encoded).float().flatten(0, 1), targets.flatten(), ignore_index=UNALIGNED, reduction="none"
        ).unflatten(0, targets.shape)
        means = (losses * real_frames(lengths, frames)).sum(dim=1) / lengths
        return means.masked_fill(target_lengths != lengths, torch.inf)

    def encoded_loss(self, encoded: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each utterance per frame, (B,), of encoded utterances (B, T, D)."""
        losses = torch.zeros(len(batch), device=self.device)
        if self.mmi_weight < 1.0:
            losses = (1.0 - self.mmi_weight) * self.decoder_loss(encoded, lengths, *self.targets(batch))
        if self.mmi_weight > 0.0:
            losses = losses + self.mmi_weight * self.mmi_loss(encoded, lengths, batch.texts)
        return losses

    def mmi_loss(self, encoded: Tensor, lengths: Tensor, texts: list[str]) -> Tensor:
        """Return the lattice-free MMI loss of each utterance per frame, (B,).

        It is infinite with an unknown word, and with three phones in a row that no utterance of training has.
        """
        graphs = [self._numerator(text) for text in texts]
        scores = self.mmi_scale * self.log_likelihoods(encoded)
        losses = lattice_free_mmi_loss(scores, lengths, GraphBatch.collate(graphs), self._denominator)
        return losses / lengths

    def _numerator(self, text: str) -> Graph:
        try:
            return as_graph(self.states, numerator_transducer(self.states, capitals(text).split(), self._phone_grammar))
        except InputError:  # the loss of an empty graph is infinite: the utterance is skipped and named
            empty = torch.zeros(0, dtype=torch.int64)
            return Graph(empty, empty, empty, torch.zeros(0), torch.zeros(1), torch.full((1,), -torch.inf))

    @torch.no_grad()
    def decode(self, encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Return the best sentences of each encoded utterance (B, T, D), the best first; `search` says how many."""
        scores = self.log_likelihoods(encoded).cpu().numpy()
        hypotheses = []
        for row, length in zip(scores, lengths.tolist(), strict=True):
            sentences = self.search(row[:length], self.states, self._decoding_graph)
            hypotheses.append(
                [
                    Hypothesis(
                        tuple(self.tokenizer.encode(" ".join(sentence.words))),
                        sentence.score,
                        words=self._words(sentence, length),
                    )
                    for sentence in sentences
                ]
            )
        return hypotheses

    def _words(self, sentence: FoundSentence, frames: int) -> tuple[Word, ...]:
        """Return the words of a sentence with the times of their states; none for a sentence from a lattice."""
        if not sentence.transition_ids:
            return ()
        hop = self.features.hop_seconds * self.states.subsampling
        window = self.features.window_samples / self.features.sample_rate
        try:
            runs = word_runs(
                self.states.lexicon, phone_runs(self.states, sentence.transition_ids), list(sentence.words)
            )
        except ValueError:  # the last word of an unfinished sentence is not whole
            return ()
        segments = in_seconds(runs, hop, window, frames * hop + window)
        return tuple(
            Word(segment.label, segment.start, segment.end) for segment in segments if segment.label != SILENCE
        )

    # Files are read when they are needed: training on alignments needs no graphs, and aligning no alignments.

    @cached_property
    def _alignments(self) -> AlignmentStore:
        return AlignmentStore(self.folder / ALIGNMENTS)

    @cached_property
    def _phone_grammar(self) -> kaldifst.StdVectorFst:
        return read_graph(self.folder / PHONE_GRAMMAR)

    @cached_property
    def _denominator(self) -> GraphBatch:
        return GraphBatch.collate(
            [as_graph(self.states, expand_to_states(self.states, self._phone_grammar, scale=1.0))]
        )

    @cached_property
    def _decoding_graph(self) -> kaldifst.StdVectorFst:
        return read_graph(self.folder / DECODING_GRAPH)


def log_priors(states: HiddenMarkovModel) -> Tensor:
    """Return the log probability (pdfs,) of each tied state, its relative frequency in the alignments."""
    counts = torch.zeros(states.pdfs).index_add(
        0, torch.from_numpy(states.pdf_of[1:]), torch.from_numpy(states.transition_counts[1:]).float()
    )
    return torch.where(counts > 0, counts / counts.sum(), 1.0).log()  # a state without frames gets no bonus


def read_graph(path: Path) -> kaldifst.StdVectorFst:
    """Read a transducer in OpenFst's binary form.

    Raises:
        InputError: It is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"no graph at {path.absolute()}; make it with `asr hybrid`")
    try:
        check_fst(regular(path).read_bytes())
        fst = kaldifst.StdVectorFst.read(str(path))
        if fst is None:
            raise ValueError("OpenFst cannot read it")
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path} is not a readable graph ({error}); make it again with `asr hybrid`") from error
    return fst
