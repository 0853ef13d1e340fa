"""LSTM language model: training, and log probabilities for a search or for rescoring."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import lightning
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from asr_lightning.batch import TextBatch
from asr_lightning.decoding.language_model import LanguageModel, State
from asr_lightning.errors import InputError
from asr_lightning.losses.cross_entropy import cross_entropy_loss
from asr_lightning.models.averaging import averaged_copies, save_averages
from asr_lightning.models.checkpoints import load_model
from asr_lightning.models.global_batch import GlobalBatch, seed_step, step_with_global_batch
from asr_lightning.models.schedules import begin_schedules, optimizer_and_schedule
from asr_lightning.models.skipped_steps import LOST_BATCHES_IN_A_ROW, GradientGuard, clip_gradients
from asr_lightning.nn.axes import Axis, Tokens, axis, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.recurrent import LSTM, continue_lstm
from asr_lightning.text.tokenizers import Tokenizer

SCORED_AT_ONCE = 8192  # tokens, padding included, which bounds the memory of `score`


class LSTMLanguageModel(lightning.LightningModule):
    """Unidirectional LSTM layers over the tokens of a sentence [Mikolov et al. 2010; Sundermeyer et al. 2012].

    Sentences are independent: `eos_id` stands before the first token and after the last one. Training minimizes the
    mean cross-entropy of the tokens of the global batch, ends of sentences included, which is that of all ranks and of
    all batches that `accumulate_grad_batches` puts into a step. All randomness of a step follows from the seed, the
    step and the rank, so a resumed run continues exactly as an uninterrupted one.

    Logs, in natural logarithms, `train/loss` per token; for all sentences of validation together `val/loss` and
    `val/perplexity` per token, and `val/word_perplexity` per word; for a test the same with `test`. Ends of sentences
    count as tokens and as words.

    Args:
        tokenizer: The vocabulary; a model can be fused with a recognizer that has the same.
        optimizer: Makes an optimizer from parameters. There is no default, because the arguments of a default would be
            kept for another class of optimizer, as the weight decay of AdamW for SGD.
        embedding_dimension: Of a token.
        hidden: Units of each layer.
        layers: LSTM layers.
        dropout: Of embeddings, between layers and before the output.
        tied: Use the embeddings as the output's weights, which needs `embedding_dimension` = `hidden`
            [Press and Wolf 2017].
        scheduler: Makes a learning rate schedule from an optimizer; it changes the rate in every step.

    Raises:
        InputError: A number is out of its range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        optimizer: OptimizerCallable,
        embedding_dimension: int = 128,
        hidden: int = 1024,
        layers: int = 2,
        dropout: float = 0.0,
        tied: bool = False,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if min(embedding_dimension, hidden, layers) < 1 or not 0.0 <= dropout < 1.0:
            raise InputError(
                "LSTMLanguageModel needs embedding_dimension, hidden and layers from 1 and 0 <= dropout < 1, got "
                f"{embedding_dimension}, {hidden}, {layers} and {dropout}"
            )
        if tied and embedding_dimension != hidden:
            raise InputError(
                "LSTMLanguageModel with tied weights needs embedding_dimension equal to hidden, got "
                f"{embedding_dimension} and {hidden}"
            )
        self.tokenizer = tokenizer
        self.hidden = hidden
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.embedding = nn.Embedding(len(tokenizer), embedding_dimension)
        # Several modules of one layer: cuDNN's dropout between layers of a module does not depend on the step's seed.
        inputs = [embedding_dimension] + [hidden] * (layers - 1)
        self.layers = nn.ModuleList(LSTM(size, hidden) for size in inputs)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(hidden, len(tokenizer))
        if tied:
            self.output.weight = self.embedding.weight
            nn.init.normal_(self.embedding.weight, std=hidden**-0.5)  # or the first logits would be huge
        self.global_batch = GlobalBatch(self.device)
        self._guard = GradientGuard()
        self._totals = torch.zeros(3, dtype=torch.float64)  # summed loss, tokens and words of an evaluation

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of embedding and output, which have a row per token."""
        tokens = axis(Tokens(self.tokenizer.tokens))
        return {
            "embedding.weight": (tokens, units(self.embedding.embedding_dim)),
            "output.weight": (tokens, units(self.hidden)),
            "output.bias": (tokens,),
        }

    def initial_state(self, batch_size: int) -> State:
        """Return zeros (B, hidden), hidden state and cell of every layer."""
        weight = self.embedding.weight
        return tuple(weight.new_zeros(batch_size, self.hidden) for _ in range(2 * len(self.layers)))

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits (B, U, V) of the token after each of the token ids (B, U), and the state after the last."""
        x = self.embedding(tokens)  # (B, U, D)
        x, state = continue_lstm(self.layers, x, state, self.dropout)
        return self.output(self.dropout(x)), state

    def losses(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the negative log probability of each text, its end included, and its number of tokens; both (B,)."""
        sentences, lengths = self._sentences(texts)
        logits, _ = self(sentences[:, :-1], self.initial_state(len(texts)))
        return cross_entropy_loss(logits, sentences[:, 1:], lengths), lengths

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the log probability of each text, its end included, in bounded memory."""
        lengths = [len(self.tokenizer.encode(text)) + 1 for text in texts]
        by_length = sorted(range(len(texts)), key=lambda index: -lengths[index])
        scores = [0.0] * len(texts)
        while by_length:
            rows = max(1, SCORED_AT_ONCE // lengths[by_length[0]])
            batch, by_length = by_length[:rows], by_length[rows:]
            for index, score in zip(batch, self._score([texts[index] for index in batch]), strict=True):
                scores[index] = score
        return scores

    def _score(self, texts: list[str]) -> list[float]:
        sentences, lengths = self._sentences(texts)
        state, total = self.initial_state(len(texts)), torch.zeros(len(texts), device=self.device)
        for start in range(0, sentences.shape[1] - 1, SCORED_AT_ONCE):
            tokens = sentences[:, start : start + SCORED_AT_ONCE + 1]  # the last is only predicted
            logits, state = self(tokens[:, :-1], state)
            total -= cross_entropy_loss(logits, tokens[:, 1:], lengths - start)
        return total.tolist()

    def _sentences(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids (B, 1 + U) with `eos_id` at both ends and as padding, and how many are predicted (B,)."""
        end = self.tokenizer.eos_id
        rows = [torch.tensor([end, *self.tokenizer.encode(text), end]) for text in texts]
        lengths = torch.tensor([len(row) - 1 for row in rows])
        sentences = pad_sequence(rows, batch_first=True, padding_value=end)
        return sentences.to(self.device, non_blocking=True), lengths.to(self.device, non_blocking=True)

    # Training.

    def configure_model(self) -> None:
        """Refuse strategies that share the weights between processes.

        Raises:
            InputError: It is `ModelParallelStrategy`.
        """
        if self.device_mesh is not None:
            raise InputError(
                "ModelParallelStrategy: expected a recognizer, got a language model, whose weights are not shared. Use "
                "--trainer.strategy ddp"
            )

    on_train_start = begin_schedules

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        """Seed the step, so that dropout does not depend on the step at which a run was resumed."""
        seed_step(self.trainer)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # where Lightning sets gradients to zero
            self.global_batch = GlobalBatch(self.device)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # Lightning's takes arguments that change the model
        cls, checkpoint_path: str | Path, map_location: torch.device | str = "cpu"
    ) -> Self:
        """Return the language model of a checkpoint in evaluation mode on a device.

        Raises:
            InputError: As `asr_lightning.models.checkpoints.load_model`.
        """
        return load_model(checkpoint_path, cls).to(map_location)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union of eleven types
        """Make the optimizer and its schedule."""
        return optimizer_and_schedule(self.make_optimizer(self.parameters()), self.make_scheduler)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Return this rank's part of the mean loss of the step's tokens, before it is rescaled."""
        losses, lengths = self.losses(batch.texts or [""])  # every rank takes part in every step, also without lines
        counted = int(len(batch) > 0)
        loss, _ = self.global_batch.add(self, losses.sum() * counted, lengths.sum() * counted, batch.ids)
        return loss

    optimizer_step = step_with_global_batch

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip the step if its gradient is not finite, and end the run after too many such steps."""
        self.log("train/loss", self.global_batch.mean(self), batch_size=1)
        self._guard.guard(self, optimizer, self.global_batch.count > 0, self.global_batch.ids, LOST_BATCHES_IN_A_ROW)

    def on_train_epoch_end(self) -> None:
        """Warn of steps that were skipped since the last review."""
        self._guard.review(self, LOST_BATCHES_IN_A_ROW)

    configure_gradient_clipping = clip_gradients
    configure_callbacks = averaged_copies
    on_save_checkpoint = save_averages

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        """Reset the counts."""
        self._totals.zero_()

    def on_test_epoch_start(self) -> None:
        """Reset the counts."""
        self._totals.zero_()

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Add the losses of a batch."""
        self._evaluate(batch)

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Add the losses of a batch."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the perplexities of the corpus."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the perplexities of the corpus."""
        self._log_evaluation("test")

    def _evaluate(self, batch: TextBatch) -> None:
        if len(batch):
            losses, lengths = self.losses(batch.texts)
            words = sum(len(text.split()) + 1 for text in batch.texts)
            counts = [float(losses.sum()), int(lengths.sum()), words]
            self._totals += torch.tensor(counts, dtype=torch.float64)

    def _log_evaluation(self, stage: str) -> None:
        totals = self._totals
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals.to(self.device), reduce_op="sum")
        loss, tokens, words = totals.tolist()
        values = {"loss": loss / tokens, "perplexity": loss / tokens, "word_perplexity": loss / words}
        for name, value in values.items():
            number = torch.tensor(value, dtype=torch.float32)
            number = number if name == "loss" else number.exp()
            self.log(f"{stage}/{name}", number.to(self.device), prog_bar=name == "perplexity", sync_dist=True)


class PretrainedLanguageModel(LanguageModel):
    """A trained `LSTMLanguageModel`, read from its checkpoint at first use, on the device of the recognizer.

    It is not a module, so that its weights are not in the checkpoint of the recognizer.

    Args:
        checkpoint: Path of the checkpoint.
        made_by: The command that makes it, for the message if it is missing.
    """

    def __init__(self, checkpoint: str, made_by: str = "") -> None:
        self.checkpoint = checkpoint
        self.made_by = made_by
        self._loaded: LSTMLanguageModel | None = None
        self._mismatch = ""

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None:
        """Read the model, move it to the device, and compare its tokens with those of a recognizer.

        Raises:
            InputError: There is no such checkpoint, or it is not one of an `LSTMLanguageModel`.
        """
        model = self._model().to(device)
        self._mismatch = _difference(model.tokenizer, tokenizer)

    def initial_state(self, batch_size: int) -> State:
        """Return the state before any token, (N, hidden) twice for every layer.

        Raises:
            InputError: The model has other tokens than the recognizer, so it can only rescore.
        """
        if self._mismatch:
            raise InputError(
                f"the language model {self.checkpoint} has other tokens than the recognizer: {self._mismatch}. It can "
                "only rescore complete texts; for a search train one with the recognizer's tokenizer"
            )
        return self._model().initial_state(batch_size)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return log probabilities (N, V) of the token after each hypothesis's last token (N,), and the next state."""
        with torch.autocast(tokens.device.type, enabled=False):
            logits, state = self._model()(tokens.unsqueeze(1), state)
        return logits.squeeze(1).float().log_softmax(dim=1), state

    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the log probability of each text, its end included, in this model's own tokens."""
        model = self._model()
        with torch.autocast(model.device.type, enabled=False):
            return model.score(texts)

    def _model(self) -> LSTMLanguageModel:
        if self._loaded is None:
            try:
                self._loaded = load_model(self.checkpoint, LSTMLanguageModel).requires_grad_(False)
            except InputError as error:
                advice = f"; make it with `{self.made_by}`" if self.made_by else ""
                raise InputError(f"the language model cannot be read: {error}{advice}") from error
        return self._loaded


def _difference(tokenizer: Tokenizer, other: Tokenizer) -> str:
    """Return the difference of two vocabularies in words; an empty text if they are equal."""
    if len(tokenizer) != len(other):
        return f"{len(tokenizer)}, not {len(other)}"
    for id, (token, other_token) in enumerate(zip(tokenizer.tokens, other.tokens, strict=True)):
        if token != other_token:
            return f"token {id} is {token!r}, not {other_token!r}"
    return "" if tokenizer.eos_id == other.eos_id else f"the end is token {tokenizer.eos_id}, not {other.eos_id}"
