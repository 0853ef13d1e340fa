"""Nearest neighbours of decoder states in other sentences [Lim et al. 2019, 3.4 and 3.5]."""

from pathlib import Path
from typing import Literal

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from asr_lightning.analysis.activations import layers_of_unit, read_description
from asr_lightning.analysis.character_neighbours import (
    SENTENCES,
    CharacterNeighbours,
    PublishedTable,
    find_character_neighbours,
    neighbour_caption,
    neighbour_table,
)
from asr_lightning.callbacks.inspection import Inspection, Stage, wandb_loggers, without_result
from asr_lightning.files import write_atomically
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.tables import as_csv, as_markdown

WANDB_LINES = 1000  # lines of each layer that W&B gets


class Neighbours(Inspection):
    """Finds, for every character that was recognized, the decoder states nearest to its own in other sentences.

    It reads what `Activations`, which must stand before it in the experiment, has written.
    `<run folder>/neighbours/<stage>` gets `<layer>.csv`, a line per character with its neighbours shown as
    `SO THEY <<S>>AID` and how many characters match right before; and `table.csv`, `table.md`: totals and means by
    layer [Table 2], beside those of shuffled states and of neighbours drawn by their last characters alone. W&B gets
    the table `neighbours`.

    Args:
        layers: Names of `Activations.modules`, the lowest first; all that have tokens if None.
        k: Neighbours of each character.
        sentences: How many are compared with each other, drawn at random; all where there are fewer, or if None. The
            paper has 79, and more candidates make longer matches.
        published: The paper's table, which is printed beside ours.
        seed: Of the sentences and of the baselines.
        stage: Of the activations.
        silence: `refuse` a network that has recognized no characters, or `warn`, as in a rehearsal.

    Raises:
        ValueError: There are fewer than two sentences to compare.
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        k: int = 5,
        sentences: int | None = SENTENCES,
        published: PublishedTable | None = None,
        seed: int = 1,
        stage: Stage = "test",
        silence: Literal["refuse", "warn"] = "refuse",
    ) -> None:
        super().__init__([stage])
        if sentences is not None and sentences < 2:
            raise ValueError(f"Neighbours: sentences must be at least 2, one has no other: got {sentences}")
        self.layers = layers
        self.k = k
        self.sentences = sentences
        self.published = published
        self.seed = seed
        self.silence = silence

    def end(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Find the neighbours and write the tables.

        Raises:
            InputError: The network has recognized no characters in two sentences, and `silence` is `refuse`.
        """
        if not trainer.is_global_zero:
            return
        for name in ("table.csv", "table.md"):  # of an earlier test: without them there is no result
            (folder / name).unlink(missing_ok=True)
        activations = folder.parents[1] / "activations" / folder.name
        layers = layers_of_unit(activations, "token", self.layers)
        results = find_character_neighbours(
            activations, layers, self.k, self.seed, str(recognizer.device), self.sentences
        )
        if not results:
            metadata = read_description(activations)
            message = (
                f"no neighbours: expected at least two sentences with characters in {activations}, but the network "
                f"recognized fewer in {metadata.get('utterances')} utterances; train it longer, or leave Neighbours out"
            )
            if self.silence == "warn":
                rank_zero_warn(message)
            else:
                without_result(trainer, message)
            return
        lines_by_layer = {result.layer: csv_rows(result) for result in results}
        for layer, of_layer in lines_by_layer.items():
            write_atomically(folder / f"{layer}.csv", as_csv([header(self.k), *of_layer]))
        rows = neighbour_table(results, self.published)
        write_atomically(folder / "table.csv", as_csv(rows))
        caption = neighbour_caption(results, self.seed, self.published)
        write_atomically(folder / "table.md", f"{as_markdown(rows)}\n\n{caption}\n")
        columns = ["layer", "utterance", "position", "sentence", *(f"neighbour_{n + 1}" for n in range(self.k))]
        for logger in wandb_loggers(trainer):
            data = [
                [layer, *wandb_columns(line, self.k)]
                for layer, of_layer in lines_by_layer.items()
                for line in of_layer[:WANDB_LINES]
            ]
            logger.log_table("neighbours", columns=columns, data=data)
        recognizer.print(f"{caption}\nWritten to {folder.absolute()}")


def header(k: int) -> list[str]:
    """Return the columns of `<layer>.csv`."""
    numbers = range(1, k + 1)
    return ["utterance", "index", "character", "sentence"] + [
        f"{name}_{number}" for number in numbers for name in ("neighbour", "utterance", "index", "distance", "matching")
    ]


def csv_rows(found: CharacterNeighbours) -> list[list[str]]:
    """Return a line for every character."""
    contexts = [found.context(row) for row in range(len(found.characters))]
    result = []
    for row, neighbours in enumerate(found.neighbours):
        line = [str(found.utterances[row]), str(found.index[row]), str(found.characters[row]), contexts[row]]
        for rank, neighbour in enumerate(neighbours):
            if neighbour < 0:
                line += [""] * 5
                continue
            line += [contexts[neighbour], str(found.utterances[neighbour]), str(found.index[neighbour])]
            line += [f"{found.distances[row, rank]:.4f}", str(found.counts[row, rank])]
        result.append(line)
    return result


def wandb_columns(line: list[str], k: int) -> list[str]:
    """Return the columns of a line for W&B: utterance, index, sentence and the neighbours' sentences."""
    return [line[0], line[1], line[3], *(line[4 + 5 * number] for number in range(k))]
