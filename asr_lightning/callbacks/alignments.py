"""Pictures and measures of alignments: attention weights, emission probabilities, CTC posteriors."""

import json
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lightning import Trainer

from asr_lightning.analysis.token_times import AttentionFigures, attention_figures, emission_probabilities
from asr_lightning.batch import Batch
from asr_lightning.callbacks.inspection import Inspection, Stage, wandb_loggers, without_result
from asr_lightning.callbacks.observation import Observation, has_ctc, observe
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.files import append_to, write_atomically
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.nn.mechanisms import Attention
from asr_lightning.report.alignment_figure import EMISSION, UtteranceAlignment, plot_alignment
from asr_lightning.report.tables import as_csv

JOINED = {"encoded": "encoder", "predicted": "prediction"}  # inputs of the joint network: module by name
COLUMNS = ("utterance", "attention", *(field.name for field in fields(AttentionFigures)))


class Alignments(Inspection):
    """Draws and measures the alignment of tokens with the frames of utterances.

    `<run folder>/alignments/<stage>` gets, from the best hypotheses,

    * `<utterance>.png`: the weights of every attention over the encoded frames, or, for a transducer, how probable it
      is that each token is emitted at each frame; and the posteriors of a CTC output, with the tokens at their frames.
      `<utterance>.npz` and `.flac` hold the same numbers, and the audio.
    * `figures.csv`: how monotonic, covering and sharp these weights are, by utterance and attention; not of a network
      that has only a CTC output, which has no such weights.

    Where there is nothing to draw, the test ends with an error.

    The next test replaces these files, which `<run folder>/alignments/.<stage>.drawn` lists, and no others.

    Args:
        utterances: How many are drawn, the first by name of those seen. All are measured.
        subsets: Only utterances of these; all if None.
        stage: When: `validate`, `test` or `predict`.
    """

    def __init__(self, utterances: int = 5, subsets: list[str] | None = None, stage: Stage = "test") -> None:
        super().__init__([stage])
        self.utterances = utterances
        self.subsets = subsets
        self._drawn: list[str] = []

    def begin(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Remove the files of an earlier test.

        Raises:
            InputError: The network has neither attention nor a joint network nor a CTC output.
        """
        if not attention_paths(recognizer) and not has_ctc(recognizer):
            raise InputError(
                f"Alignments: expected a network with attention, a transducer or a CTC output, got a "
                f"{type(recognizer).__name__}, which has none: leave Alignments out; for the times of phones of a "
                "hybrid use `asr align`"
            )
        self._drawn = []
        if trainer.is_global_zero:
            for name in _drawn_utterances(folder, ".drawn*"):
                _remove_files(folder, name)
            old = [folder / "figures.csv", *folder.glob(".figures.rank*"), *_list_files(folder, ".drawn*")]
            for path in old:
                path.unlink(missing_ok=True)
        trainer.strategy.barrier()
        folder.mkdir(parents=True, exist_ok=True)
        self._rank_file(trainer).unlink(missing_ok=True)

    def _rank_file(self, trainer: Trainer) -> Path:
        return self._folder(trainer) / f".figures.rank{trainer.global_rank:05}"

    def process(self, trainer: Trainer, recognizer: Recognizer, batch: Batch, best: list[Hypothesis]) -> None:
        """Measure and draw a batch."""
        chosen = [row for row in range(len(batch)) if self.subsets is None or batch.subsets[row] in self.subsets]
        if not chosen:
            return
        observation = observe(
            recognizer, batch, attention_paths(recognizer), [hypothesis.tokens for hypothesis in best]
        )
        for row in chosen:
            aligned = alignment(recognizer, batch, best[row], observation, row)
            lines = [[aligned.utterance, name, *_figures(weights)] for name, weights in aligned.attention.items()]
            with append_to(self._rank_file(trainer)) as file:
                file.write(as_csv(lines))
            self._draw(aligned, batch, row, self._folder(trainer), trainer.global_rank)

    def _draw(self, aligned: UtteranceAlignment, batch: Batch, row: int, folder: Path, rank: int) -> None:
        """Draw an utterance if it is among the first by name; remove the files of one that no longer is."""
        if self.utterances < 1 or (len(self._drawn) >= self.utterances and aligned.utterance >= max(self._drawn)):
            return
        if not aligned.attention and aligned.posteriors is None:
            return
        with folder.with_name(f".{folder.name}.drawn.rank{rank:05}").open("a", encoding="utf-8") as file:
            file.write(json.dumps(aligned.utterance) + "\n")  # before it is drawn: a test may be killed
        plot_alignment(aligned, folder / f"{aligned.utterance}.png")
        arrays: dict[str, Any] = {f"attention/{name}": weights for name, weights in aligned.attention.items()}
        if aligned.posteriors is not None:
            arrays["posteriors"] = aligned.posteriors
        for name in ("tokens", "seconds", "onsets", "vocabulary", "blank_id"):
            arrays[name] = np.array(getattr(aligned, name))
        np.savez_compressed(folder / f"{aligned.utterance}.npz", **arrays)
        audio = batch.audio[row, : int(batch.audio_lengths[row])].cpu().numpy()
        soundfile.write(folder / f"{aligned.utterance}.flac", audio, batch.sample_rate, subtype="PCM_16")
        self._drawn.append(aligned.utterance)
        for name in sorted(self._drawn)[self.utterances :]:
            _remove_files(folder, name)
            self._drawn.remove(name)

    def end(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Merge the figures of the processes.

        Raises:
            InputError: Nothing was looked at, or there is nothing to draw.
        """
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        parts = sorted(folder.glob(".figures.rank*"))
        lines = sorted(line for part in parts for line in part.read_text("utf-8").splitlines())
        for part in parts:
            part.unlink()
        if lines:
            write_atomically(folder / "figures.csv", "".join(f"{line}\n" for line in [",".join(COLUMNS), *lines]))
        names = _drawn_utterances(folder, ".drawn.rank*")
        for name in names[self.utterances :]:
            _remove_files(folder, name)
        del names[self.utterances :]
        write_atomically(folder.with_name(f".{folder.name}.drawn"), "".join(f"{json.dumps(name)}\n" for name in names))
        for path in _list_files(folder, ".drawn.rank*"):
            path.unlink()
        if not lines and not names:
            subsets = f" of the subsets {', '.join(self.subsets)}" if self.subsets is not None else ""
            without_result(
                trainer,
                f"no alignments: nothing was recognized in any utterance{subsets} of this {folder.name}; correct "
                "Alignments.subsets, or train the network longer",
            )
            return
        for logger in wandb_loggers(trainer):
            logger.log_image("alignments", [str(folder / f"{name}.png") for name in names])
        recognizer.print(f"Alignments of {len(names)} utterances are in {folder.absolute()}")


def attention_paths(recognizer: Recognizer) -> dict[str, str]:
    """Return the attentions of a recognizer over its frames, or what the joint network of a transducer reads."""
    modules = dict(recognizer.named_modules())
    attending = [
        name for name, module in modules.items() if isinstance(module, Attention) or name.endswith("cross_attention")
    ]
    paths = {name: f"{name}:weights" for name in attending}
    return paths | (JOINED if isinstance(recognizer, RNNTransducer) else {})


@torch.no_grad()
def alignment(
    recognizer: Recognizer, batch: Batch, best: Hypothesis, observation: Observation, row: int
) -> UtteranceAlignment:
    """Return the alignment of an utterance, for its picture and its figures."""
    frames, tokenizer = int(observation.lengths[row]), recognizer.tokenizer
    attention = {}
    if isinstance(recognizer, RNNTransducer) and best.tokens:
        encoded, predicted = (observation.outputs[name].values[row] for name in JOINED)
        projected = recognizer.encoder_projection(encoded[:frames]).unsqueeze(1)
        logits = recognizer.joint(projected, predicted[: len(best.tokens) + 1]).cpu()  # (T, U + 1, V)
        attention[EMISSION] = emission_probabilities(logits, best.tokens, tokenizer.blank_id).numpy()
    for name, output in observation.outputs.items():
        if name in JOINED:
            continue
        weights = output.values[row, : int(output.lengths[row])].float()
        weights = weights.unflatten(1, (-1, int(observation.lengths.max())))
        for head, of_head in enumerate(weights[:, :, :frames].unbind(dim=1)):
            attention[f"{name}, head {head + 1}" if weights.shape[1] > 1 else name] = of_head.cpu().numpy()
    posteriors = None if observation.log_probs is None else observation.log_probs[row, :frames].exp().cpu().numpy()
    return UtteranceAlignment(
        utterance=batch.ids[row],
        title=best.text,
        tokens=[tokenizer.tokens[token] for token in best.tokens],
        seconds=int(batch.audio_lengths[row]) / batch.sample_rate,
        attention=attention,
        posteriors=posteriors,
        vocabulary=tokenizer.tokens,
        onsets=best.frames or observation.onsets(row, best.tokens, tokenizer.blank_id),
        blank_id=tokenizer.blank_id,
    )


def _figures(weights: np.ndarray) -> list[str]:
    totals = weights.sum(axis=1, keepdims=True)
    normalized = weights / np.where(totals > 0, totals, 1.0)  # emission probabilities may add up to less
    return [f"{value:.4f}" for value in astuple(attention_figures(normalized))]


def _list_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files that list drawn utterances, beside their folder; those of ranks are merged at the end."""
    return sorted(folder.parent.glob(f".{folder.name}{pattern}"))


def _drawn_utterances(folder: Path, pattern: str) -> list[str]:
    """Return the names of the utterances that lists hold; an incomplete line is left out."""
    names = set()
    for path in _list_files(folder, pattern):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                names.add(str(json.loads(line)))
            except json.JSONDecodeError:
                continue
    return sorted(names)


def _remove_files(folder: Path, utterance: str) -> None:
    for suffix in (".png", ".svg", ".npz", ".flac"):
        path = folder / f"{utterance}{suffix}"
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
