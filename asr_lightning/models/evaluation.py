"""Error rates, loss and speed of a recognizer in a validation or a test, and its evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric

from asr_lightning.errors import InputError
from asr_lightning.scoring.error_rates import ErrorRates

READABLE_AUDIO = "expected audio that can be read. The warnings above name the files and their errors."


class Evaluation:
    """Metrics of all subsets that a trainer evaluates, and of all of them together.

    Args:
        stage: `val` or `test`, the name of what all subsets have together.
        loaders: Of the trainer; a dictionary has the names of subsets.
        device: Of the losses.
    """

    def __init__(self, stage: str, loaders: Any, device: torch.device) -> None:  # noqa: ANN401 - of any data module
        names = list(loaders) if isinstance(loaders, dict) else []
        self.stage = stage
        self.subsets = names or [stage]
        self._overall = SubsetMetrics(device)
        self._by_subset = {name: SubsetMetrics(device) for name in names}

    def update(
        self,
        dataloader_idx: int,
        references: list[str],
        texts: list[str],
        spelled: list[str],
        losses: Tensor,
        search_seconds: float,
        audio_seconds: float,
    ) -> None:
        """Count a batch.

        Args:
            dataloader_idx: Index of the subset.
            references: Transcripts as they are scored.
            texts: Recognized texts.
            spelled: The references as the vocabulary can write them.
            losses: (B,).
            search_seconds: Time of recognition.
            audio_seconds: Duration of the audio.
        """
        subset = list(self._by_subset.values())[dataloader_idx : dataloader_idx + 1]
        for metrics in [self._overall, *subset]:
            metrics.update(references, texts, spelled, losses, search_seconds, audio_seconds)

    def compute(self) -> dict[str, dict[str, Tensor]]:
        """Return the metrics of all ranks by the names of subsets; those of all together under the stage's name."""
        together = {} if self.stage in self._by_subset else {self.stage: self._overall}
        return {name: metrics.compute() for name, metrics in {**together, **self._by_subset}.items()}

    def log(self, module: LightningModule, vocabulary: str) -> None:
        """Log the metrics of all ranks, which all have to call this.

        Args:
            module: The recognizer.
            vocabulary: Name of its tokenizer, for the warning that no recognizer with it could have an error rate of 0.

        Raises:
            InputError: No utterance of a subset was read, unless this is Lightning's sanity check.
        """
        metrics = self.compute()
        empty = ", ".join(name for name in self.subsets if not metrics[name]["utterances"])
        if empty and not module.trainer.sanity_checking:
            raise InputError(f"no utterance of {empty} was read, so there is no error rate: {READABLE_AUDIO}")
        for name in self.subsets:
            if (floor := float(metrics[name]["wer_floor"])) > 0:
                rank_zero_warn(
                    f"{name}: {floor:.2%} of WER is of words that the {vocabulary} cannot write; no recognizer with it "
                    "can do better"
                )
        for name, values in metrics.items():
            for key, value in values.items():
                in_progress_bar = name == self.stage and key == "wer"
                module.log(f"{name}/{key}", value.float(), prog_bar=in_progress_bar, sync_dist=True)


class SubsetMetrics:
    """Errors, losses and speed, summed over utterances and ranks.

    Args:
        device: Of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self.error_rates = ErrorRates().to(device)
        self.floor = ErrorRates().to(device)  # of the references as the vocabulary can write them
        self.loss = MeanMetric(nan_strategy="disable").to(device)
        self.search_seconds = SumMetric().to(device)
        self.audio_seconds = SumMetric().to(device)
        self.update([], [], [], torch.zeros(0, device=device), 0.0, 0.0)  # torchmetrics warns of metrics without update

    def update(
        self,
        references: list[str],
        texts: list[str],
        spelled: list[str],
        losses: Tensor,
        search_seconds: float,
        audio_seconds: float,
    ) -> None:
        """Count a batch; arguments as of `Evaluation.update`."""
        self.error_rates.update(references, texts)
        self.floor.update(references, spelled)
        self.loss.update(losses[losses.isfinite()])
        self.search_seconds.update(search_seconds)
        self.audio_seconds.update(audio_seconds)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics that are logged, over all ranks.

        The real time factor is seconds of search per second of audio; `wer_floor` is the error rate of a recognizer
        without any error, which is above 0 where the vocabulary cannot write a word.
        """
        factor = self.search_seconds.compute() / self.audio_seconds.compute()
        floor = self.floor.compute()["wer"]
        rates = {**self.error_rates.compute(), "wer_floor": floor}
        return {**rates, "loss": self.loss.compute(), "real_time_factor": factor}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and every module of it back into its own mode afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
