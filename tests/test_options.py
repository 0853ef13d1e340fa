"""Options of the trainer and of the corpus: each works, or is refused in a few lines."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace

from asr_lightning import cli
from asr_lightning.audio.features import LogMel
from asr_lightning.audio.normalization import UtteranceNormalization
from asr_lightning.callbacks.wandb_run import keep_wandb_offline
from asr_lightning.error_messages import TRACE, explain, trace_kept
from asr_lightning.errors import InputError
from asr_lightning.models.instantiation import brief
from asr_lightning.parser import experiments_first
from asr_lightning.report.tables import as_text, metrics_by_subset
from data_modules.sampler import cut_batches
from data_modules.spoken import SpokenDataModule
from tests.support.commands import exit_message

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
pytestmark = pytest.mark.usefixtures("outside_the_project")


def test_numbers_of_batches_and_overrides_mean_what_they_say(unread: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[Any] = []
    monkeypatch.setattr(cli.CommandLine, "_run_subcommand", lambda self, _: trainers.append(self.trainer))
    unread.write_text(unread.read_text() + "  limit_test_batches: 1\n  limit_predict_batches: 1.0\n")
    options = ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "7"]
    cli.main(["fit", *options, "-c", str(unread), "--trainer.limit_val_batches", "0.5"])
    limits = [getattr(trainers[0], f"limit_{stage}_batches") for stage in ("train", "val", "test", "predict")]
    assert limits == [1, 0.5, 1, 1.0] and [type(limit) for limit in limits] == [int, float, int, float]
    assert trainers[0].max_epochs == 7


def test_experiments_are_read_before_what_overrides_them() -> None:
    arguments = ["fit", "--a", "1", "-c", "x.yaml", "--b=2", "--config=y.yaml", "--config", "z.yaml", "--c"]
    assert experiments_first(arguments) == [
        "fit", "-c", "x.yaml", "--config=y.yaml", "--config", "z.yaml", "--a", "1", "--b=2", "--c"
    ]  # fmt: skip
    assert experiments_first(["-c"]) == ["-c"] and experiments_first([]) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--trainer.accelerator", "gpu"], "gpu"),
        (["--trainer.strategy", "nonsense"], "nonsense"),
        (["--trainer.devices", "0"], "devices"),
        (["--trainer.max_epochs", "-5"], "-5"),
        (["--trainer.accumulate_grad_batches", "0"], "expected more than 0, got 0"),
        (["--trainer.check_val_every_n_epoch", "0"], "expected more than 0, got 0"),
        (["--seed_everything", "-1"], "expected a number from 0"),
        (["--trainer.callbacks+=LearningRateFinder"], "asr tune"),
        (["--trainer.callbacks+=BatchSizeFinder"], "batch_seconds"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "test-clean/wer"], "cannot be tested"),
        (
            ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{4: 2}"],
            "data.init_args.batch_seconds",
        ),
        (["--data.init_args.batch_seconds", ".inf"], "got inf"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_in_a_sentence(
    unread: Path,
    options: list[str],
    expected: str,
    tmp_path: Path,
) -> None:
    message = exit_message("fit", "-c", str(unread), *options)
    assert message.startswith("error: ") and expected in message and len(message.splitlines()) <= 3
    assert not (tmp_path / "runs/tiny/logs").exists()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("limit_train_batches", 0, "expected more than 0, got 0"), ("barebones", True, "--trainer.logger false")],
)
def test_a_run_that_would_train_or_measure_nothing_is_refused(name: str, value: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        cli.refuse_options(Namespace(**{"barebones": False, name: value}), [])


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("data.init_args.batch_second", "batch_seconds"),
        ("model.init_args.ctc_wieght", "ctc_weight"),
        ("model.init_args.encoder.init_args.layer", "layers"),
        ("weight_selection.techer", "weight_selection.teacher"),
    ],
)
def test_the_nearest_of_a_misspelt_key_is_named(
    unread: Path, misspelt: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_message("fit", "-c", str(unread), f"--{misspelt}", "1") == "2"
    message = capsys.readouterr().err
    assert f"\nThe nearest is {meant}.\n" in message and "NestedArg" not in message
    assert exit_message("fit", "-c", str(unread), "--qqqqqqqq", "1") == "2" and "nearest" not in capsys.readouterr().err


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="half precision without oneDNN")
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_of_any_precision_are_trained_without_loggers(tiny: Path, tmp_path: Path, precision: str) -> None:
    options = ["--trainer.logger", "false", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"]
    cli.main(["fit", "-c", str(tiny), "--trainer.precision", precision, *options])
    saved = torch.load(tmp_path / "runs/tiny/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    kinds = {value.dtype for name, value in saved.items() if value.is_floating_point() and "features" not in name}
    assert kinds == {torch.bfloat16 if precision == "bf16-true" else torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_features_are_computed_in_float32_whatever_the_weights_are(dtype: torch.dtype) -> None:
    audio, lengths = torch.randn(2, 4_000), torch.tensor([4_000, 3_000])
    features = LogMel(normalization=UtteranceNormalization())
    expected, _ = features(audio, lengths)
    computed, _ = torch.nn.ModuleDict({"features": features, "layer": torch.nn.Linear(2, 2)}).to(dtype)["features"](
        audio, lengths
    )
    assert computed.dtype == torch.float32 and torch.equal(computed, expected)


def test_one_table_of_a_test() -> None:
    metrics = {"a/wer": 0.123456, "a/words": 1234.0, "a/loss": 2.5, "a/real_time_factor": 0.04321, "b/wer": 1.0}
    assert metrics_by_subset(metrics) == [
        ["subset", "WER %", "words", "loss", "real time factor"],
        ["a", "12.35", "1,234", "2.500", "0.04321"],
        ["b", "100.00", "–", "–", "–"],
    ]
    assert len(as_text(metrics_by_subset(metrics)).splitlines()) == 3


def test_batches_of_any_length_are_cut() -> None:
    durations = np.array([3.0, 2.0, 1.0])
    for seconds in (1e300, 1e12):
        starts, _ = cut_batches(durations, seconds, 2.0, 1)
        assert len(starts) and starts[0] == 0
    with pytest.raises(InputError, match="evaluation_batch_seconds must be more than 0, and a number, got inf"):
        SpokenDataModule(evaluation_batch_seconds=float("inf"))


def test_keys_of_wandb_that_cannot_be_read_keep_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for make in (lambda path: path.mkdir(), lambda path: (path.rmdir(), path.write_bytes(b"\xff\xfe machine"))):
        make(tmp_path / ".netrc")
        keep_wandb_offline()
        assert cli.os.environ.pop("WANDB_MODE") == "offline"


def test_an_error_of_a_library_is_a_sentence_and_leaves_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError) as failed, trace_kept(tmp_path, 1):
        raise RuntimeError("the power failed")
    path = tmp_path / "trace-rank1.txt"
    assert explain(failed.value).startswith(f"RuntimeError: the power failed\nThe stack trace is in {path}. ")
    assert path.read_text().startswith("Traceback") and 'raise RuntimeError("the power failed")' in path.read_text()
    with pytest.raises(InputError), trace_kept(tmp_path, 0):
        raise InputError("expected this, found that")
    assert not (tmp_path / "trace.txt").exists()

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(cli, "CommandLine", fail)
    assert "KeyError: 'a fault of ours'" in exit_message("fit") and TRACE in exit_message("fit")
    monkeypatch.setenv(TRACE, "1")
    with pytest.raises(KeyError):
        cli.main(["fit"])


def test_a_misspelt_class_is_named_without_what_else_could_stand_there() -> None:
    wanted = "\n".join(f"  - Expected a typing.Union[{'int, ' * 40}]" for _ in range(40))
    message = brief(
        f"Parser key \"model\":\n{wanted}\n  - Problem with given class_path 'a.B':\n    a has no attribute 'B'"
    )
    assert message.splitlines() == [
        'Parser key "model":', "  - Problem with given class_path 'a.B':", "    a has no attribute 'B'"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.init_args.decoder.init_args.attention.class_path=asr_lightning.nn.mechanisms.AditiveAttention"],
            "there is no AditiveAttention in asr_lightning.nn.mechanisms; there are AdditiveAttention, ",
        ),
        (
            ["--model.init_args.encoder.class_path=asr_lightning.nn.recurent.LSTMEncoder"],
            "there is no recurent in asr_lightning.nn; there are recurrent, ",
        ),
        (
            ["--trainer.callbacks+=asr_lightning.callbacks.alignments.Alignment"],
            "there is no Alignment in asr_lightning.callbacks.alignments; there are Alignments",
        ),
        (
            ["--data.class_path=data_modules.librispeech.LibriSpeech"],
            "there is no LibriSpeech in data_modules.librispeech; there are LibriSpeechDataModule",
        ),
    ],
    ids=["attention", "module", "callback", "corpus"],
)
def test_a_misspelt_class_is_named_with_those_that_there_are(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_message("fit", "-c", str(EXPERIMENTS / "demo/las.yaml"), *options) == "2"
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and len(error.splitlines()) == 2


def test_help_of_the_model_lists_all_models_and_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_message("fit", "--model.help") == "0"
    help_text = capsys.readouterr().out
    for name in ("RNNTransducer", "EncoderDecoder", "CTCRecognizer", "BLSTMHMM", "LSTMLanguageModel"):
        assert re.search(rf"  asr_lightning[.]models[.]\w+[.]{name}\n", help_text), name
    experiments = [yaml.safe_load(path.read_text("utf-8")) for path in EXPERIMENTS.glob("*.yaml")]
    models = [experiment["model"]["init_args"] for experiment in experiments if "model" in experiment]
    encoders = {model["encoder"]["class_path"] for model in models if "encoder" in model}
    assert len(encoders) > 6 and all(f"  {path}\n" in help_text for path in encoders)
    assert exit_message("fit", "--model.help", "asr_lightning.models.ctc.CTCRecognizer") == "0"
    compact = re.sub(r"\s", "", capsys.readouterr().out)  # long names are broken
    assert [path for path in encoders if path not in compact] == [], "the arguments of a model name them too"


def test_training_ends_early_by_a_development_subset_and_keeps_its_best(tiny: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(tiny.read_text())
    content["data"]["init_args"]["test_subsets"] = ["test-other"]
    tiny.write_text(yaml.safe_dump(content))
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=test-clean/wer"]
    never = ["--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=2.0"]  # no epoch is so much better
    cli.main(["fit", "-c", str(tiny), *stop, *never, "--trainer.max_epochs", "9", "--checkpoints.best", "1"])
    epochs = [line.split(",")[2] for line in (tmp_path / "runs/tiny/error_rates.csv").read_text().splitlines()[1:]]
    assert epochs == ["1", "1", "2", "2"]
    assert len(list((tmp_path / "runs/tiny/checkpoints").glob("best-epoch=*.ckpt"))) == 1


def test_one_batch_is_one_batch_without_loggers(tiny: Path, tmp_path: Path) -> None:
    options = ["--trainer.logger", "false", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    cli.main(["fit", "-c", str(tiny), "--data.init_args.batch_seconds", "4", *options])
    saved = torch.load(tmp_path / "runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    assert not (tmp_path / "runs/tiny/logs").exists() and not (tmp_path / "runs/tiny/wandb").exists()
