"""Pictures of layers by t-SNE, and the numbers behind them [seed 000 §2.4, §3]."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from asr_lightning.analysis.activations import Layer, read_utterances
from asr_lightning.analysis.layers import Projected, curves, measure, project_layers, read_layers, table_of
from asr_lightning.callbacks.looking import Looking, Stage, wandb_loggers
from asr_lightning.errors import InputError
from asr_lightning.files import write_atomically
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.layer_figures import plot_curves, plot_order, plot_phones
from asr_lightning.report.tables import as_csv

COLUMNS = ("utterance", "speaker", "index", "start", "end", "character", "phone", "x", "y")


class TSNE(Looking):
    """Draws where the frames of a sentence lie in each layer, and measures the layers.

    It reads what `Activations`, which must stand before it in the experiment, has written. Every layer of frames is
    projected by itself, from all utterances of one speaker, and turned like the first. `<run folder>/tsne/<stage>` gets

    * `<speaker>/<layer>.csv`: places of all frames, with the columns of the activations and `x,y`;
    * `<speaker>/<utterance>-order.png`, `-phone.png`: the layers side by side; one for each layer below `<utterance>/`,
      which W&B gets as `tsne/<layer>/order` and `tsne/<layer>/phone`;
    * `figures.csv`, `figures.png`: what `asr_lightning.analysis.probes` measures, by layer, speaker and space.

    Args:
        layers: Names of `Activations.modules`, the lowest first; all that have frames if None.
        speakers: Whose frames: names, or how many, those with most frames first.
        sentences: Which of each speaker are drawn: names, or how many, those of the most typical length first.
        components: Principal components that t-SNE sees.
        perplexity: About how many neighbours a frame has.
        iterations: Of the optimisation.
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

    def end(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Draw and measure."""
        if not trainer.is_global_zero:
            return
        activations = folder.parents[1] / "activations" / folder.name
        layers, texts = read_layers(activations, self.layers), read_utterances(activations)
        measured = []
        for speaker in self._chosen_speakers(layers[0]):
            try:
                projected = project_layers(layers, speaker, self.seed, **self.options)
            except ValueError as error:  # hardly a frame, or numbers that overflowed: the other speakers go on
                rank_zero_warn(f"no t-SNE of speaker {speaker}: {error}")
                continue
            measured += measure(projected, self.neighbours)
            for one in projected:
                write_atomically(folder / speaker / f"{one.layer.name}.csv", places_as_csv(one))
            for utterance in self._chosen_sentences(projected[0]):
                title = texts[utterance]["reference"] or texts[utterance]["hypothesis"]
                self._draw_sentence(trainer, projected, utterance, title, folder / speaker)
        if not measured:
            return
        write_atomically(folder / "figures.csv", as_csv(table_of(measured)))
        plot_curves(curves(measured), folder / "figures.png")
        recognizer.print(f"t-SNE of {len(layers)} layers is in {folder.absolute()}")

    def _draw_sentence(
        self, trainer: Trainer, projected: Sequence[Projected], utterance: str, title: str, folder: Path
    ) -> None:
        for kind, plot in (("order", plot_order), ("phone", plot_phones)):
            plot(projected, utterance, title, folder / f"{utterance}-{kind}.png")
            for one in projected:
                path = folder / utterance / f"{one.layer.name}-{kind}.png"
                plot([one], utterance, title, path)
                for logger in wandb_loggers(trainer):
                    logger.log_image(f"tsne/{one.layer.name}/{kind}", [str(path)], caption=[f"{utterance}: {title}"])

    def _chosen_speakers(self, layer: Layer) -> list[str]:
        names, counts = np.unique(layer.speakers, return_counts=True)
        if isinstance(self.speakers, int):
            return [str(name) for name in names[np.argsort(-counts, kind="stable")][: self.speakers]]
        if missing := [speaker for speaker in self.speakers if speaker not in names]:
            raise InputError(f"TSNE: expected speakers among {', '.join(names)}, got {', '.join(missing)}")
        return self.speakers

    def _chosen_sentences(self, projected: Projected) -> list[str]:
        names, counts = np.unique(projected.layer.utterances, return_counts=True)
        if isinstance(self.sentences, int):
            by_typical_length = np.argsort(np.abs(counts - np.median(counts)), kind="stable")
            return [str(name) for name in names[by_typical_length][: self.sentences]]
        return [name for name in self.sentences if name in names]


def places_as_csv(projected: Projected) -> str:
    """Write where frames are, one line each."""
    layer = projected.layer
    lines: list[list[object]] = [[*COLUMNS]]
    columns = (layer.utterances, layer.speakers, layer.index, layer.starts, layer.ends, layer.characters, layer.phones)
    for row, (x, y) in zip(zip(*columns, strict=True), projected.places, strict=True):
        name, speaker, index, start, end, character, phone = row
        numbers = [f"{value:.4f}" for value in (start, end, x, y)]
        lines.append([name, speaker, index, *numbers[:2], character, phone, *numbers[2:]])
    return as_csv(lines)
