"""An LSTM that predicts texts token by token: its training, and its use in a search or for rescoring."""

from collections.abc import Sequence
from typing import Any

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
from asr_lightning.models.global_batch import GlobalBatch, step_with_global_batch
from asr_lightning.models.recognizer import LOST_BATCHES_IN_A_ROW, optimizer_and_schedule, seed_step
from asr_lightning.models.schedules import begin_schedules
from asr_lightning.models.skipped_steps import GradientGuard, clip_gradients
from asr_lightning.nn.axes import Axis, Tokens, axis, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.recurrent import LSTM, read_on
from asr_lightning.text.tokenizers import Tokenizer

SCORED_AT_ONCE = 8192  # tokens, padding included: what `score` needs of memory does not depend on the texts


class LSTMLanguageModel(lightning.LightningModule):
    """Unidirectional LSTM layers over the tokens of a sentence [Mikolov et al. 2010; Sundermeyer et al. 2012].

    Sentences are independent: `eos_id` stands before the first token, and is what follows the last one. Training
    minimises the mean cross-entropy of the tokens of the global batch, ends included, which is that of all ranks and of
    all batches that `accumulate_grad_batches` puts into a step. All randomness of a step follows from the seed, the
    step and the rank, so a resumed run goes on exactly as an undisturbed one.

    Logs, in natural logarithms, `train/loss` per token; and of the whole corpus `val/loss` and `val/perplexity` per
    token, `val/word_perplexity` per word. Ends count as tokens and as words. The same with `test`.

    Args:
        tokenizer: The vocabulary; a model can be fused with a recogniser that has the same.
        optimizer: Makes an optimiser from parameters. There is no default, because the arguments of a default would be
            kept for another class of optimiser, as the weight decay of AdamW for SGD.
        embedding_dimension: Of a token.
        hidden: Units of each layer.
        layers: LSTM layers.
        dropout: Of embeddings, between layers and before the output.
        tied: Use the embeddings as the output's weights, which needs `embedding_dimension` = `hidden`
            [Press and Wolf 2017].
        scheduler: Makes a learning rate schedule from an optimiser; it moves every step.

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
        # Not one module of several layers: cuDNN's dropout between them does not follow from the seed of the step.
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
        """Say that embedding and output have a row per token."""
        tokens = axis(Tokens(self.tokenizer.tokens))
        return {
            "embedding.weight": (tokens, units(self.embedding.embedding_dim)),
            "output.weight": (tokens, units(self.hidden)),
            "output.bias": (tokens,),
        }

    def initial_state(self, batch_size: int) -> State:
        """Return zeros, (B, hidden) twice for every layer."""
        weight = self.embedding.weight
        return tuple(weight.new_zeros(batch_size, self.hidden) for _ in range(2 * len(self.layers)))

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read token ids (B, U), return logits (B, U, V) of what follows each of them, and the state behind them."""
        x = self.embedding(tokens)  # (B, U, D)
        x, state = read_on(self.layers, x, state, self.dropout)
        return self.output(self.dropout(x)), state

    def losses(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the negative log probability of each text, its end included, and its tokens; both (B,)."""
        sentences, lengths = self._sentences(texts)
        logits, _ = self(sentences[:, :-1], self.initial_state(len(texts)))
        return cross_entropy_loss(logits, sentences[:, 1:], lengths), lengths

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the log probability of each text, its end included; memory is bounded, whatever the texts."""
        lengths = [len(self.tokenizer.encode(text)) + 1 for text in texts]
        waiting = sorted(range(len(texts)), key=lambda number: -lengths[number])
        scores = [0.0] * len(texts)
        while waiting:
            rows = max(1, SCORED_AT_ONCE // lengths[waiting[0]])
            now, waiting = waiting[:rows], waiting[rows:]
            for number, score in zip(now, self._score([texts[number] for number in now]), strict=True):
                scores[number] = score
        return scores

    def _score(self, texts: list[str]) -> list[float]:
        sentences, lengths = self._sentences(texts)
        state, total = self.initial_state(len(texts)), torch.zeros(len(texts), device=self.device)
        for start in range(0, sentences.shape[1] - 1, SCORED_AT_ONCE):
            tokens = sentences[:, start : start + SCORED_AT_ONCE + 1]  # the last of them is only predicted
            logits, state = self(tokens[:, :-1], state)
            total -= cross_entropy_loss(logits, tokens[:, 1:], lengths - start)
        return total.tolist()

    def _sentences(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids (B, 1 + U) between two ends, padded with ends, and how many are to be predicted (B,)."""
        end = self.tokenizer.eos_id
        rows = [torch.tensor([end, *self.tokenizer.encode(text), end]) for text in texts]
        lengths = torch.tensor([len(row) - 1 for row in rows])
        sentences = pad_sequence(rows, batch_first=True, padding_value=end)
        return sentences.to(self.device, non_blocking=True), lengths.to(self.device, non_blocking=True)

    # Training.

    def configure_model(self) -> None:
        """Refuse a strategy by which processes would share the weights.

        Raises:
            InputError: It is `ModelParallelStrategy`.
        """
        if self.device_mesh is not None:
            raise InputError(
                "ModelParallelStrategy: expected a recogniser, got a language model, which every process holds whole. "
                "Use --trainer.strategy ddp"
            )

    on_train_start = begin_schedules

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        """Seed the step, so that dropout does not depend on where a run was resumed."""
        seed_step(self.trainer)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # where Lightning sets gradients to zero
            self.global_batch = GlobalBatch(self.device)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union of eleven types
        """Make the optimiser and its schedule."""
        return optimizer_and_schedule(self.make_optimizer(self.parameters()), self.make_scheduler)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Return this rank's part of the mean loss of the step's tokens, before it is rescaled."""
        losses, lengths = self.losses(batch.texts or [""])  # every rank takes part in every step, also without lines
        real = int(len(batch) > 0)
        loss, _ = self.global_batch.add(self, losses.sum() * real, lengths.sum() * real, batch.ids)
        return loss

    optimizer_step = step_with_global_batch

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the weights alone where the gradient is not finite, and stop when that does not end."""
        self.log("train/loss", self.global_batch.mean(self), batch_size=1)
        self._guard.guard(self, optimizer, self.global_batch.count > 0, self.global_batch.ids, LOST_BATCHES_IN_A_ROW)

    def on_train_epoch_end(self) -> None:
        """Name what was skipped since the last look."""
        self._guard.review(LOST_BATCHES_IN_A_ROW)

    configure_gradient_clipping = clip_gradients
    configure_callbacks = averaged_copies
    on_save_checkpoint = save_averages

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        """Begin counting anew."""
        self._totals.zero_()

    def on_test_epoch_start(self) -> None:
        """Begin counting anew."""
        self._totals.zero_()

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Count the losses of a batch."""
        self._evaluate(batch)

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Count the losses of a batch."""
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
    """A trained `LSTMLanguageModel`, read from its checkpoint when it is first used, on the device of the recogniser.

    It is no module, so that its weights belong to no recogniser and to no recogniser's checkpoint.

    Args:
        checkpoint: Path of the checkpoint.
        made_by: The command that makes it, said where it is missing.
    """

    def __init__(self, checkpoint: str, made_by: str = "") -> None:
        self.checkpoint = checkpoint
        self.made_by = made_by
        self._loaded: LSTMLanguageModel | None = None
        self._mismatch = ""

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None:
        """Read the model, move it to the device, and compare its tokens with a recogniser's.

        Raises:
            InputError: There is no such checkpoint, or it is not one of an `LSTMLanguageModel`.
        """
        model = self._model().to(device)
        self._mismatch = _difference(model.tokenizer, tokenizer)

    def initial_state(self, batch_size: int) -> State:
        """Return the state before any token, (N, hidden) twice for every layer.

        Raises:
            InputError: The model's tokens are not the recogniser's, so it can only rescore.
        """
        if self._mismatch:
            raise InputError(
                f"the language model {self.checkpoint} has other tokens than the recogniser: {self._mismatch}. It can "
                "rescore whole texts only; for a search with it train one with the recogniser's tokenizer"
            )
        return self._model().initial_state(batch_size)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), return log probabilities (N, V) of the next, and the state."""
        with torch.autocast(tokens.device.type, enabled=False):
            logits, state = self._model()(tokens.unsqueeze(1), state)
        return logits.squeeze(1).float().log_softmax(dim=1), state

    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the log probability of each text, its end included, by this model's own tokens."""
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


def _difference(own: Tokenizer, other: Tokenizer) -> str:
    """Say in words how two vocabularies differ; nothing if they do not."""
    if len(own) != len(other):
        return f"{len(own)}, not {len(other)}"
    for number, (mine, yours) in enumerate(zip(own.tokens, other.tokens, strict=True)):
        if mine != yours:
            return f"token {number} is {mine!r}, not {yours!r}"
    return "" if own.eos_id == other.eos_id else f"the end is token {own.eos_id}, not {other.eos_id}"
