"""Write activations of layers for every frame and token: for t-SNE, probes and neighbours."""

import re
from collections.abc import Sequence
from pathlib import Path

from lightning import Trainer

from asr_lightning.analysis.activations import PartWriter, Rows, UtteranceActivations, merge_parts, read_description
from asr_lightning.analysis.token_times import segments_from_onsets
from asr_lightning.batch import Batch
from asr_lightning.callbacks.inspection import Inspection, Stage
from asr_lightning.callbacks.observation import Observation, check_paths, has_ctc, observe
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.text.phones import PhoneLabels, Segment, label_spans


class Activations(Inspection):
    """Writes the activations of named modules into `<run folder>/activations/<stage>`.

    The files are those of `asr_lightning.analysis.activations`. A validation replaces the files of the previous one.
    Nothing is hooked, computed or kept outside the chosen stages; within them, every batch is encoded once more, and
    the decoder reads the best hypothesis, so its states are those that led to it. At most a batch is held in memory.
    With several processes each writes its own utterances, and the first merges them, sorted by name.

    Args:
        modules: A name that you choose for each module, and its path, as `{layer1: encoder.layers.0, top: encoder,
            decoder1: decoder.cells.0}`. `encoder.layers.1:input` is the input of a module.
        stages: When: `validate`, `test`, `predict`.
        labels: The phones of utterances. If None, characters of the transcript stand for them, as the recognizer's CTC
            output aligns them; without a CTC output there are none, and `TSNE` cannot color frames.
        subsets: Only utterances of these; all if None.
        speakers: Names of speakers, or how many of them to keep, the first by name; all if None.
        utterances: How many to keep, the first by name of those seen; all if None. Each process looks at this many.

    Raises:
        ValueError: There is no such stage, no module, or a module's name has other characters than allowed.
    """

    def __init__(
        self,
        modules: dict[str, str],
        stages: Sequence[Stage] = ("test",),
        labels: PhoneLabels | None = None,
        subsets: list[str] | None = None,
        speakers: list[str] | int | None = None,
        utterances: int | None = None,
    ) -> None:
        super().__init__(stages)
        odd = [name for name in modules if not re.fullmatch(r"[\w-][\w.-]*", name)]
        if odd or not modules:
            raise ValueError(f"modules need names of letters, digits, `_`, `-` and dots, got {odd or 'none'}")
        self.modules = dict(modules)
        self.labels = labels
        self.subsets = subsets
        self.speakers = speakers
        self.utterances = utterances
        self._part: PartWriter | None = None
        self._seen = 0

    def begin(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Start the file of this process.

        Raises:
            InputError: A module does not exist, or the labels do not.
        """
        check_paths(recognizer, self.modules)
        if self.labels is not None:
            self.labels.require()
        self._part = PartWriter(folder.with_name(f".{folder.name}.rank{trainer.global_rank:05}"))
        self._seen = 0

    def knows_phones(self, recognizer: Recognizer) -> bool:
        """Whether frames get a phone, or a character in its place."""
        return self.labels is not None or has_ctc(recognizer)

    def process(self, trainer: Trainer, recognizer: Recognizer, batch: Batch, best: list[Hypothesis]) -> None:
        """Write the outputs of the modules for a batch."""
        chosen = [row for row in range(len(batch)) if self._is_chosen(batch, row)]
        if not chosen:
            return
        assert self._part is not None
        observation = observe(recognizer, batch, self.modules, [hypothesis.tokens for hypothesis in best])
        for row in chosen:
            self._part.append(self._utterance_activations(recognizer, batch, best[row], observation, row))

    def _is_chosen(self, batch: Batch, row: int) -> bool:
        if self.subsets is not None and batch.subsets[row] not in self.subsets:
            return False
        if isinstance(self.speakers, list) and batch.speakers[row] not in self.speakers:
            return False
        if self.utterances is not None and self._seen >= self.utterances:
            return False
        self._seen += 1
        return True

    def _utterance_activations(
        self, recognizer: Recognizer, batch: Batch, best: Hypothesis, observation: Observation, row: int
    ) -> UtteranceActivations:
        seconds = int(batch.audio_lengths[row]) / batch.sample_rate
        text = batch.texts[row]
        characters = _characters(recognizer, best.tokens, best.frames, observation, row, seconds)
        if self.labels is not None:
            phones = self.labels.segments(batch.ids[row])
        else:
            phones = (
                _characters(recognizer, recognizer.tokenizer.encode(text), (), observation, row, seconds)
                if text
                else []
            )
        names = [recognizer.tokenizer.tokens[token] for token in best.tokens] + ["<eos>"]
        utterance = UtteranceActivations(
            batch.ids[row], batch.subsets[row], batch.speakers[row], seconds, text, best.text
        )
        for name, output in observation.outputs.items():
            length = int(output.lengths[row])
            values = output.values[row, :length].float().cpu().numpy()
            if output.unit == "token":
                utterance.modules[name] = Rows(values, "token", characters=names)
                continue
            starts, ends = (times[:length] for times in observation.spans(output.lengths))
            utterance.modules[name] = Rows(
                values, "frame", starts.tolist(), ends.tolist(), label_spans(characters, starts, ends),
                label_spans(phones, starts, ends),
            )  # fmt: skip
        return utterance

    def end(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Merge the files of the processes."""
        self._part = None
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            description = {
                "recognizer": type(recognizer).__name__,
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "paths": self.modules,
            }
            speakers = self.speakers if isinstance(self.speakers, int) else None
            count = merge_parts(
                sorted(folder.parent.glob(f".{folder.name}.rank*")), folder, description, self.utterances, speakers
            )
            if not count:
                raise InputError(
                    f"Activations: expected utterances of the subsets {self.subsets} and the speakers {self.speakers}, "
                    f"found none in {folder.name}; correct subsets and speakers"
                )
            labeled = read_description(folder)["with_phones"]
            if self.labels is not None and not labeled:
                raise InputError(
                    f"expected phones of the {count} utterances, found none in "
                    f"{describe_labels(self.labels)}: its labels are of other utterances; make labels of these with "
                    "`asr align`, and name them in Activations"
                )
            phones = f", {labeled} of them with phones" if labeled < count else ""
            recognizer.print(f"Activations of {count} utterances{phones} are in {folder.absolute()}")
        trainer.strategy.barrier()


def describe_labels(labels: PhoneLabels) -> str:
    """Return the class of labels and where they lie."""
    path = getattr(labels, "path", None) or getattr(labels, "folder", None)
    return f"{type(labels).__name__}({path or ''})"


def _characters(
    recognizer: Recognizer,
    tokens: Sequence[int],
    onsets: Sequence[int],
    observation: Observation,
    row: int,
    seconds: float,
) -> list[Segment]:
    """Return segments of tokens, timed by the search or else by the CTC output; none where neither gives times."""
    onsets = onsets or observation.onsets(row, tokens, recognizer.tokenizer.blank_id)
    if not onsets or len(onsets) != len(tokens):
        return []
    starts, _ = observation.spans(observation.lengths)
    labels = [recognizer.tokenizer.tokens[token] for token in tokens]
    return segments_from_onsets([float(starts[onset]) for onset in onsets], labels, seconds)
