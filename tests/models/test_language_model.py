"""The language model learns probabilities, logs losses and perplexities, and is restored from a checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from asr_lightning.batch import TextBatch
from asr_lightning.errors import InputError
from asr_lightning.models import language_model
from asr_lightning.models.checkpoints import build_model, load_model, load_recognizer
from asr_lightning.models.language_model import LSTMLanguageModel, PretrainedLanguageModel
from asr_lightning.nn.axes import Tokens, module_axes
from asr_lightning.text.tokenizers import CharacterTokenizer
from data_modules.text import TextDataModule
from tests.support.sentences import TEXTS, batch_of, configuration, direct_log_probability, make, save
from tests.support.tones import loader, make_trainer
from tests.support.tones import make as make_recognizer

# What is logged.


def test_perplexities_are_those_of_the_corpus_and_begin_anew(tmp_path: Path) -> None:
    model, trainer = make(dropout=0.3), make_trainer(tmp_path)
    batches = [batch_of(*TEXTS[:3]), batch_of(TEXTS[3]), batch_of(), batch_of(TEXTS[4])]
    runs: list[tuple[str, Callable[..., Any], list[TextBatch]]] = [
        ("val", trainer.validate, batches),
        ("val", trainer.validate, batches[1:]),
        ("test", trainer.test, batches[:1]),
    ]
    for stage, run, data in runs:
        run(model, loader(data), verbose=False)  # type: ignore[arg-type]
        texts = [text for batch in data for text in batch.texts]
        loss = -sum(direct_log_probability(model, text) for text in texts)
        tokens = sum(len(CharacterTokenizer().encode(text)) + 1 for text in texts)
        words = sum(len(text.split()) + 1 for text in texts)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert logged == pytest.approx(
            {
                f"{stage}/loss": loss / tokens,
                f"{stage}/perplexity": math.exp(loss / tokens),
                f"{stage}/word_perplexity": math.exp(loss / words),
            },
            rel=1e-4,
        )


def test_the_training_loss_is_the_mean_over_tokens(tmp_path: Path) -> None:
    model, trainer = make(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}), make_trainer(tmp_path)
    trainer.fit(model, loader([batch_of(*TEXTS)]))  # type: ignore[list-item]
    tokens = sum(len(CharacterTokenizer().encode(text)) + 1 for text in TEXTS)
    expected = -sum(direct_log_probability(model, text) for text in TEXTS) / tokens
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-4)


# Learning.


class MarkovSource:
    """Sentences of letters, each drawn by the one before it; `following` ends with the probability of the end."""

    letters = "ABCD"
    first = (0.7, 0.1, 0.1, 0.1)
    following = (
        (0.05, 0.60, 0.20, 0.05, 0.10),
        (0.05, 0.05, 0.75, 0.05, 0.10),
        (0.30, 0.05, 0.05, 0.45, 0.15),
        (0.40, 0.25, 0.10, 0.05, 0.20),
    )

    def draw(self, count: int, seed: int) -> list[str]:
        generator, sentences = torch.Generator().manual_seed(seed), []
        rows = torch.tensor(self.following)
        for _ in range(count):
            indices = [int(torch.multinomial(torch.tensor(self.first), 1, generator=generator))]
            while (index := int(torch.multinomial(rows[indices[-1]], 1, generator=generator))) < 4:
                indices.append(index)
            sentences.append("".join(self.letters[index] for index in indices))
        return sentences

    def entropy_per_token(self) -> float:
        """The entropy in nats; the token that begins a word is certain, and counts."""
        rows = torch.tensor(self.following, dtype=torch.float64)
        first = torch.tensor(self.first, dtype=torch.float64)
        visits = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - rows[:, :4].T, first)  # expected, per sentence
        entropy = torch.special.entr(first).sum() + (visits * torch.special.entr(rows).sum(dim=1)).sum()
        return float(entropy / (2 + visits.sum()))


def test_it_learns_a_source_as_well_as_the_source_can_be_known(tmp_path: Path) -> None:
    source = MarkovSource()
    training, validation = source.draw(3000, seed=1), source.draw(1500, seed=2)
    batches = [batch_of(*training[start : start + 50]) for start in range(0, len(training), 50)]
    schedule = {"warmup_share": 0.02}
    model = make(
        layers=1,
        optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 0.03}},
        scheduler={"class_path": "asr_lightning.models.schedules.WarmupCosine", "init_args": schedule},
    )
    trainer = make_trainer(tmp_path, max_epochs=4)
    trainer.fit(model, loader(batches), loader([batch_of(*validation)]))  # type: ignore[arg-type, list-item]
    reached, truth = float(trainer.callback_metrics["val/perplexity"]), math.exp(source.entropy_per_token())
    assert reached == pytest.approx(truth, rel=0.02)


def test_the_gradient_of_several_ranks_is_that_of_the_joined_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [batch_of(TEXTS[0], TEXTS[3]), batch_of(TEXTS[2]), batch_of()]  # the last rank has run out of lines
    model = make()
    monkeypatch.setattr(model, "log", lambda *arguments, **options: None)
    counts = [sum(len(CharacterTokenizer().encode(text)) + 1 for text in batch.texts) for batch in shares]
    counted = []

    def all_reduce(count: Tensor) -> None:
        counted.append(int(count))
        count.fill_(sum(counts))

    def gradients(batch: TextBatch, ranks: int) -> list[Tensor]:
        model._trainer = type("Ranks", (), {"world_size": ranks})()  # type: ignore[assignment]
        model.zero_grad()
        model.training_step(batch, 0).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr] # all have one

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    parts = [gradients(batch, 3) for batch in shares]
    joined = gradients(batch_of(*(text for batch in shares for text in batch.texts)), 1)
    for expected, *rank_gradients in zip(joined, *parts, strict=True):
        torch.testing.assert_close(sum(rank_gradients) / 3, expected, rtol=1e-4, atol=1e-6)
    assert counted == counts
    assert all((gradient == 0).all() for gradient in parts[2]) and joined[0].abs().max() > 1e-3


def test_a_gradient_that_is_no_number_changes_nothing_and_stops_training_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "LOST_BATCHES_IN_A_ROW", 3)
    model = make()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.output.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
    trainer = make_trainer(tmp_path, gradient_clip_val=1.0)
    with (
        pytest.warns(UserWarning, match="step 0 is skipped.*line 0"),
        pytest.raises(InputError, match="3 steps in a row"),
    ):
        trainer.fit(model, loader([batch_of("A CAB")] * 9))  # type: ignore[list-item]
    assert not [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]


def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    texts = [*TEXTS, "FEE", "HEAD", "ABE BADGE", "CAGED", "FACE", "EGG AGE", "HE FED"]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    schedule = {"class_path": "asr_lightning.models.schedules.WarmupCosine",
                "init_args": {"warmup_share": 0.3}}  # fmt: skip

    def run(seed: int, folder: str, validate: bool, resume: Path | None = None) -> LSTMLanguageModel:
        torch.manual_seed(seed)
        model = build_model(configuration(dropout=0.4, scheduler=schedule), LSTMLanguageModel)
        files = [str(tmp_path / "text.txt")]
        data = TextDataModule(files, validation_files=files if validate else [], batch_characters=20, workers=0)
        saving = ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        trainer = make_trainer(
            tmp_path, max_epochs=2, callbacks=[saving], enable_checkpointing=True, gradient_clip_val=1.0
        )
        trainer.fit(model, datamodule=data, ckpt_path=resume)
        return model

    undisturbed = run(1, "first", validate=True)
    steps, expected = undisturbed.trainer.global_step, undisturbed.state_dict()
    assert steps >= 8
    for step in (2, steps // 2 + 1):  # in the first epoch, in the second
        checkpoint = tmp_path / "first" / f"step={step}.ckpt"
        early = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert not torch.equal(early["output.weight"], expected["output.weight"])
        resumed = run(99, f"from {step}", validate=False, resume=checkpoint)
        assert resumed.trainer.global_step == steps
        for name, value in resumed.state_dict().items():
            assert torch.equal(value, expected[name]), name


# What it is.


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_brings_back_the_same_model(tmp_path: Path, tied: bool) -> None:
    model = make(tied=tied, embedding_dimension=16, dropout=0.2)
    assert (model.output.weight is model.embedding.weight) is tied
    loaded = load_model(save(model, tmp_path / "model.ckpt"), LSTMLanguageModel)
    assert not loaded.training and loaded.score(TEXTS) == pytest.approx(model.eval().score(TEXTS))
    assert (loaded.output.weight is loaded.embedding.weight) is tied


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    speech, text = save(make_recognizer(), tmp_path / "speech.ckpt"), save(make(), tmp_path / "text.ckpt")
    with pytest.raises(
        InputError, match=r"speech\.ckpt: this is no configuration of a model of class LSTMLanguageModel"
    ):
        PretrainedLanguageModel(speech).score(["A"])
    with pytest.raises(InputError, match=r"text\.ckpt: this is no configuration of a recognizer"):
        load_recognizer(text)


def test_the_axes_of_its_weights_name_the_tokens() -> None:
    tokens = Tokens(CharacterTokenizer().tokens)
    for tied in (False, True):
        axes = module_axes(make(tied=tied, embedding_dimension=16))
        for name in ("embedding.weight", "output.weight", "output.bias"):
            assert axes[name][0] == ((tokens,),)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tied": True}, "embedding_dimension equal to hidden, got 8 and 16"),
        ({"layers": 0}, "got 8, 16, 0 and 0.0"),
        ({"dropout": 1.0}, "got 8, 16, 2 and 1.0"),
    ],
)
def test_arguments_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**wrong)
