"""Pictures of layers by t-SNE, and the numbers behind them [Lim et al. 2019, 2.4 and 3]."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from asr_lightning.analysis.activations import Layer, read_description, read_utterances
from asr_lightning.analysis.chosen_sentences import ChosenSentence, choose_sentences, find_sentences, text_of
from asr_lightning.analysis.layers import (
    LayerProjection,
    layer_curves,
    layer_table,
    measure_layers,
    project_layers,
    read_layers,
)
from asr_lightning.callbacks.activations import Activations
from asr_lightning.callbacks.inspection import Inspection, Stage, wandb_loggers, without_result
from asr_lightning.errors import InputError
from asr_lightning.files import write_atomically
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.layer_figures import plot_curves, plot_order, plot_phones
from asr_lightning.report.tables import as_csv

COLUMNS = ("utterance", "speaker", "index", "start", "end", "character", "phone", "x", "y")
SENTENCES = "sentences.csv"
SENTENCE_COLUMNS = ("speaker", "utterance", "text", "note")
LABELS = (
    "name those of the utterances in Activations.labels, as data_modules.phone_labels.CTMLabels reads what "
    "`asr align --config experiments/hybrid.yaml --checkpoint "
    "runs/hybrid/checkpoints/last.ckpt --output runs/hybrid/alignments` writes"
)


class TSNE(Inspection):
    """Draws where the frames of a sentence lie in each layer, and measures the layers.

    It reads what `Activations`, which must stand before it in the experiment, has written. Every layer of frames is
    projected by itself, from all utterances of one speaker, and turned like the first. `<run folder>/tsne/<stage>` gets

    * `<speaker>/<layer>.csv`: positions of all frames, with the columns of the activations and `x,y`;
    * `<speaker>/<utterance>-order.png`, `-phone.png`: the layers side by side; one for each layer below `<utterance>/`,
      which W&B gets as `tsne/<layer>/order` and `tsne/<layer>/phone`;
    * `sentences.csv`: which sentences these are, and whether one stands in for another that the corpus lacks;
    * `figures.csv`, `figures.png`: what `asr_lightning.analysis.probes` measures, by layer, speaker and space.

    Frames without phones cannot be colored or measured: where no utterance has any, the test ends with an error.

    Args:
        layers: Names of `Activations.modules`, the lowest first; all that have frames if None.
        speakers: Whose frames: names, or how many. The speakers of `sentences` come first, then those with most frames.
        sentences: What is drawn. A number: so many of each speaker, those of the most typical length first. A list of
            names or texts: these; where the corpus lacks one, the longest sentence of the first speaker stands in for
            it, and caption and log say so.
        components: Principal components that t-SNE reads.
        perplexity: About how many neighbours a frame has.
        iterations: Of the optimization.
        neighbours: Of the phone purity.
        seed: Of everything random.
        stage: Of the activations.
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        speakers: list[str] | int = 1,
        sentences: list[str] | int = 1,
        components: int = 50,
        perplexity: float = 30.0,
        iterations: int = 750,
        neighbours: int = 5,
        seed: int = 1,
        stage: Stage = "test",
    ) -> None:
        super().__init__([stage])
        self.layers = layers
        self.speakers = speakers
        self.sentences = sentences
        self.options = {"components": components, "perplexity": perplexity, "iterations": iterations}
        self.neighbours = neighbours
        self.seed = seed

    def begin(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Check before recognition that there will be activations with phones.

        Raises:
            InputError: There will be none.
        """
        earlier = trainer.callbacks[: trainer.callbacks.index(self)]  # type: ignore[attr-defined]
        makers = [other for other in earlier if isinstance(other, Activations) and folder.name in other.stages]
        if not makers:
            read_description(_activations(folder))
        elif not makers[-1].knows_phones(recognizer):
            raise InputError(
                f"expected phones to color and measure frames by, found none: Activations has no labels, and a "
                f"{type(recognizer).__name__} without CTC cannot say when characters are spoken; {LABELS}"
            )

    def end(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Draw and measure.

        Raises:
            InputError: There is nothing to draw or to measure.
        """
        if not trainer.is_global_zero:
            return
        for name in ("figures.csv", "figures.png", SENTENCES):  # of an earlier test: without them there is no result
            (folder / name).unlink(missing_ok=True)
        activations = _activations(folder)
        layers, utterances = read_layers(activations, self.layers), read_utterances(activations)
        sizes = _utterances_with_phones(layers[0])
        if not sizes:
            without_result(trainer, f"expected phones of frames in {activations}, found none; {LABELS}")
            return
        measured, sentences = [], []
        speakers = self._chosen_speakers(layers[0], utterances)
        for speaker in speakers:
            try:
                projections = project_layers(layers, speaker, self.seed, **self.options)
            except ValueError as error:  # hardly a frame, or numbers that overflowed: the other speakers go on
                rank_zero_warn(f"no t-SNE of speaker {speaker}: {error}")
                continue
            measured += measure_layers(projections, self.neighbours)
            for projection in projections:
                write_atomically(folder / speaker / f"{projection.layer.name}.csv", positions_as_csv(projection))
            for sentence in self._chosen_sentences(speaker, utterances, sizes, first=speaker == speakers[0]):
                if sentence.note:
                    rank_zero_warn(f"{sentence.utterance} is drawn: {sentence.note}")
                self._draw_sentence(trainer, projections, sentence, folder / speaker)
                sentences.append(sentence)
        if not measured:
            without_result(trainer, f"no t-SNE: none of the speakers {', '.join(speakers)} has frames to be projected")
            return
        if self.sentences and not sentences:
            raise InputError(
                f"TSNE: expected sentences of the speakers {', '.join(speakers)}, got {self.sentences}; give a number "
                "of speakers: those of the sentences come first"
            )
        rows = [[sentence.speaker, sentence.utterance, sentence.text, sentence.note] for sentence in sentences]
        write_atomically(folder / SENTENCES, as_csv([SENTENCE_COLUMNS, *rows]))
        write_atomically(folder / "figures.csv", as_csv(layer_table(measured)))
        plot_curves(layer_curves(measured), folder / "figures.png")
        recognizer.print(f"t-SNE of {len(layers)} layers is in {folder.absolute()}")

    def _draw_sentence(
        self, trainer: Trainer, projections: Sequence[LayerProjection], sentence: ChosenSentence, folder: Path
    ) -> None:
        utterance, caption = sentence.utterance, sentence.caption
        for kind, plot in (("order", plot_order), ("phone", plot_phones)):
            plot(projections, utterance, caption, folder / f"{utterance}-{kind}.png")
            for projection in projections:
                path = folder / utterance / f"{projection.layer.name}-{kind}.png"
                plot([projection], utterance, caption, path)
                for logger in wandb_loggers(trainer):
                    logger.log_image(
                        f"tsne/{projection.layer.name}/{kind}", [str(path)], caption=[f"{utterance}: {caption}"]
                    )

    def _chosen_speakers(self, layer: Layer, utterances: Mapping[str, Mapping[str, str]]) -> list[str]:
        names, counts = np.unique(layer.speakers, return_counts=True)
        if isinstance(self.speakers, int):
            by_frames = [str(name) for name in names[np.argsort(-counts, kind="stable")]]
            wanted = [] if isinstance(self.sentences, int) else self.sentences
            first = [utterances[name]["speaker"] for name in find_sentences(wanted, utterances).values() if name]
            return list(dict.fromkeys([*first, *by_frames]))[: self.speakers]
        if missing := [speaker for speaker in self.speakers if speaker not in names]:
            raise InputError(f"TSNE: expected speakers among {', '.join(names)}, got {', '.join(missing)}")
        return self.speakers

    def _chosen_sentences(
        self, speaker: str, utterances: Mapping[str, Mapping[str, str]], sizes: Mapping[str, int], first: bool
    ) -> list[ChosenSentence]:
        """Return the sentences of a speaker that are drawn; of the first speaker also the substitutes."""
        own_sizes = {name: size for name, size in sizes.items() if utterances[name]["speaker"] == speaker}
        if isinstance(self.sentences, int):
            typical = np.median(list(own_sizes.values())) if own_sizes else 0
            names = sorted(own_sizes, key=lambda name: abs(own_sizes[name] - typical))[: self.sentences]
            return [ChosenSentence(name, speaker, text_of(utterances[name])) for name in names]
        sentences = choose_sentences(self.sentences, utterances, sizes, speaker)
        return [sentence for sentence in sentences if sentence.speaker == speaker and (first or not sentence.note)]


def _activations(folder: Path) -> Path:
    """Return where `Activations` writes, beside the folder of `TSNE`."""
    return folder.parents[1] / "activations" / folder.name


def _utterances_with_phones(layer: Layer) -> dict[str, int]:
    """Return the utterances that have phones, by name, and how many frames each has."""
    names, numbers, counts = np.unique(layer.utterances, return_inverse=True, return_counts=True)
    with_phones = np.bincount(numbers, layer.phones != "", minlength=len(names)) > 0
    return {str(name): int(count) for name, count, labeled in zip(names, counts, with_phones, strict=True) if labeled}


def positions_as_csv(projected: LayerProjection) -> str:
    """Return positions of frames, a line per frame."""
    layer = projected.layer
    lines: list[list[object]] = [[*COLUMNS]]
    columns = (layer.utterances, layer.speakers, layer.index, layer.starts, layer.ends, layer.characters, layer.phones)
    for row, (x, y) in zip(zip(*columns, strict=True), projected.positions, strict=True):
        name, speaker, index, start, end, character, phone = row
        numbers = [f"{value:.4f}" for value in (start, end, x, y)]
        lines.append([name, speaker, index, *numbers[:2], character, phone, *numbers[2:]])
    return as_csv(lines)
