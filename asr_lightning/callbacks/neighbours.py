"""What decoder states have in common: nearest neighbours in other sentences [seed 000 §3.4, §3.5]."""

from pathlib import Path

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from asr_lightning.analysis.activations import layers_of
from asr_lightning.analysis.histories import Histories, find_histories, table
from asr_lightning.callbacks.looking import Looking, Stage, wandb_loggers
from asr_lightning.files import write_atomically
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.tables import as_csv, as_markdown

SENT = 1000  # lines of each layer that W&B gets


class Neighbours(Looking):
    """Finds, for every character that was recognised, the decoder states nearest to its own in other sentences.

    It reads what `Activations`, which must stand before it in the experiment, has written.
    `<run folder>/neighbours/<stage>` gets `<layer>.csv`, a line per character with its neighbours shown as
    `SO THEY <<S>>AID` and how many characters match right before; and `table.csv`, `table.md`: totals and means by
    layer [Table 2], beside those of shuffled states and of neighbours drawn by their last characters alone. W&B gets
    the table `neighbours`.

    Args:
        layers: Names of `Activations.modules`; all that have tokens if None.
        k: Neighbours of each character.
        seed: Of the baselines.
        stage: Of the activations.
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        k: int = 5,
        seed: int = 1,
        stage: Stage = "test",
    ) -> None:
        super().__init__([stage])
        self.layers = layers
        self.k = k
        self.seed = seed

    def end(self, trainer: Trainer, recognizer: Recognizer, folder: Path) -> None:
        """Find and write."""
        if not trainer.is_global_zero:
            return
        activations = folder.parents[1] / "activations" / folder.name
        layers = layers_of(activations, "token", self.layers)
        found = find_histories(activations, layers, self.k, self.seed, str(recognizer.device))
        if not found:  # a network that says nothing yet is no reason to stop
            rank_zero_warn(f"no neighbours: expected at least two sentences with characters in {activations}")
            return
        said = {one.layer: lines(one) for one in found}
        for layer, of_layer in said.items():
            write_atomically(folder / f"{layer}.csv", as_csv([header(self.k), *of_layer]))
        rows = table(found)
        write_atomically(folder / "table.csv", as_csv(rows))
        write_atomically(folder / "table.md", as_markdown(rows) + "\n")
        columns = ["layer", "utterance", "position", "sentence", *(f"neighbour_{n + 1}" for n in range(self.k))]
        for logger in wandb_loggers(trainer):
            data = [[layer, *sent(line, self.k)] for layer, of_layer in said.items() for line in of_layer[:SENT]]
            logger.log_table("neighbours", columns=columns, data=data)
        recognizer.print(f"Neighbours of {len(found[0].characters)} characters are in {folder.absolute()}")


def header(k: int) -> list[str]:
    """Return the columns of `<layer>.csv`."""
    numbers = range(1, k + 1)
    return ["utterance", "index", "character", "sentence"] + [
        f"{name}_{number}" for number in numbers for name in ("neighbour", "utterance", "index", "distance", "matching")
    ]


def lines(found: Histories) -> list[list[str]]:
    """Return a line for every character."""
    shown = [found.context(row) for row in range(len(found.characters))]
    result = []
    for row, places in enumerate(found.places):
        line = [str(found.utterances[row]), str(found.index[row]), str(found.characters[row]), shown[row]]
        for rank, place in enumerate(places):
            if place < 0:
                line += [""] * 5
                continue
            line += [shown[place], str(found.utterances[place]), str(found.index[place])]
            line += [f"{found.distances[row, rank]:.4f}", str(found.counts[row, rank])]
        result.append(line)
    return result


def sent(line: list[str], k: int) -> list[str]:
    """Return what W&B shows of a line: where, the sentence, and the neighbours' sentences."""
    return [line[0], line[1], line[3], *(line[4 + 5 * number] for number in range(k))]
