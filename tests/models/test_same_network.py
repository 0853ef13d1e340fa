"""What may differ between a checkpoint and the experiment beside it; anything else is refused by its name."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_model, load_model, load_recognizer
from asr_lightning.models.experiment import parameters_without_memory
from asr_lightning.models.language_model import LSTMLanguageModel
from asr_lightning.models.same_network import check_same_network, check_training_state
from asr_lightning.text.tokenizers import train_sentencepiece
from tests.support.sentences import configuration as language_model
from tests.support.tones import attention_decoder, ctc, features, lstm_encoder, speller, transducer

SYLLABLES = "asr_lightning.text.hangul.SyllableTokenizer"
PIECES = "asr_lightning.text.tokenizers.SentencePieceTokenizer"
DEMO = Path(__file__).parents[2] / "experiments/demo"


def checkpoint_of(config: dict[str, Any]) -> dict[str, Any]:
    """A whole checkpoint, of a network that no step has changed."""
    model = build_model(config, LightningModule)
    training = {"optimizer_states": [{}], "lr_schedulers": [], "epoch": 1}
    return {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), **training}


def compare(trained: dict[str, Any], experiment: dict[str, Any]) -> None:
    check_same_network(build_model(experiment, LightningModule), checkpoint_of(trained), "some.ckpt")


def listener(**changes: Any) -> dict[str, Any]:
    return attention_decoder(encoder=lstm_encoder(20), decoder=speller("DotAttention"), **changes)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "the model": (transducer(), ctc(lstm_encoder(20)), "model: .*RNNTransducer in the checkpoint, .*CTCRecognizer in"),
    "the encoder": (
        ctc(lstm_encoder(20)),
        ctc({"class_path": "asr_lightning.nn.recurrent.PyramidalLSTMEncoder",
             "init_args": {"input_dimension": 20, "hidden": 32, "layers": 1}}),
        "encoder: asr_lightning.nn.recurrent.LSTMEncoder in the checkpoint, .*PyramidalLSTMEncoder in the experiment",
    ),
    "a size": (transducer(), transducer(encoder=lstm_encoder(20, hidden=16)),
               "encoder.hidden: 32 in the checkpoint, 16 in the experiment"),
    "what makes no weights": (
        transducer(), transducer(features=features("LogMel", "UtteranceNormalization", mels=20, hop_seconds=0.02)),
        "features.hop_seconds: 0.01 in the checkpoint, 0.02 in the experiment",
    ),
    "no normalization": (transducer(), transducer(features=features("LogMel", mels=20)),
                         "features.normalization: .*UtteranceNormalization in the checkpoint, None in the experiment"),
    "a normalization": (transducer(features=features("LogMel", mels=20)), transducer(),
                        "features.normalization: None in the checkpoint, .*UtteranceNormalization in the experiment"),
    "a CTC output": (transducer(), transducer(ctc_weight=0.3), "ctc_weight: 0.0 in the checkpoint, 0.3 in"),
    "no CTC output": (transducer(ctc_weight=0.3), transducer(), "ctc_weight: 0.3 in the checkpoint, 0.0 in"),
    "no biases": (ctc(lstm_encoder(20)), ctc(lstm_encoder(20), output_bias=False),
                  "output_bias: True in the checkpoint, False in the experiment"),
    "another tokenizer": (
        transducer(), transducer(tokenizer={"class_path": "asr_lightning.text.tokenizers.LetterTokenizer"}),
        "tokenizer: .*CharacterTokenizer in the checkpoint, .*LetterTokenizer in the experiment",
    ),
    "a language model's size": (language_model(), language_model(layers=1), "layers: 2 in the checkpoint, 1 in the"),
    "shared weights": (language_model(embedding_dimension=16), language_model(embedding_dimension=16, tied=True),
                       "tied: False in the checkpoint, True in the experiment"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_another_network_is_refused_by_name(what: str) -> None:
    trained, experiment, message = CHANGES[what]
    with pytest.raises(InputError, match=f"some.ckpt is a checkpoint of another network.*:\n  {message}"):
        compare(trained, experiment)


@pytest.mark.parametrize(
    ("trained", "experiment"),
    [
        (transducer(), transducer(search={"class_path": "asr_lightning.decoding.transducer.TransducerSearch"})),
        (transducer(search={"class_path": "asr_lightning.decoding.transducer.TransducerSearch"}), transducer()),
        (transducer(), transducer(augment={"class_path": "asr_lightning.audio.augment.SpecAugment"})),
        (transducer(), transducer(optimizer={"class_path": "torch.optim.SGD"}, transducer_loss="torchaudio")),
        (transducer(), transducer(encoder=lstm_encoder(20, dropout=0.3))),
        (transducer(ctc_weight=0.3), transducer(ctc_weight=0.5)),
        (ctc(lstm_encoder(20)), ctc(lstm_encoder(20), loss_per_token=True)),
        (transducer(), transducer(encoder=lstm_encoder(20, subsampling=4))),  # the default, written
        (listener(), attention_decoder(
            encoder=lstm_encoder(20), decoder=speller("DotAttention", sampling=0.4), label_smoothing=0.1)),
        (language_model(), language_model(dropout=0.2, optimizer={"class_path": "torch.optim.SGD"})),
    ],
)  # fmt: skip
def test_what_computes_the_same_may_differ(trained: dict[str, Any], experiment: dict[str, Any]) -> None:
    compare(trained, experiment)


def test_an_older_checkpoint_has_the_default_of_what_came_later() -> None:
    checkpoint = checkpoint_of(transducer())
    del checkpoint["hyper_parameters"]["encoder"]["init_args"]["subsampling"]
    del checkpoint["hyper_parameters"]["ctc_weight"]
    check_same_network(build_model(transducer(), LightningModule), checkpoint, "some.ckpt")
    wider = build_model(transducer(encoder=lstm_encoder(20, subsampling=2)), LightningModule)
    with pytest.raises(InputError, match="encoder.subsampling: 4 in the checkpoint, 2 in the experiment"):
        check_same_network(wider, checkpoint, "some.ckpt")
    checkpoint["hyper_parameters"]["encoder"]["init_args"]["gone"] = 1
    with pytest.raises(InputError, match=r"(?s)some.ckpt: .*LSTMEncoder.*Option 'gone' is not accepted$"):
        check_same_network(wider, checkpoint, "some.ckpt")


def units(path: Path, letters: str) -> dict[str, Any]:
    path.write_text("".join(f"{letter}\t1\n" for letter in letters))
    return {"class_path": SYLLABLES, "init_args": {"characters": str(path)}}


def test_checkpoints_of_attention_decoders_from_before_their_orders_are_in_the_order_of_las() -> None:
    experiments = {
        state: attention_decoder(
            encoder={
                "class_path": "asr_lightning.nn.recurrent.ProjectedLSTMEncoder",
                "init_args": {"input_dimension": 20, "hidden": 8, "layers": 2, "projection": 8, "subsampling": [2]},
            },
            decoder=speller("AdditiveAttention", query_state=state),
        )
        for state in ("current", "previous")
    }
    checkpoint = checkpoint_of(experiments["current"])
    arguments = checkpoint["hyper_parameters"]
    del arguments["encoder"]["init_args"]["last_tanh"]
    del arguments["decoder"]["init_args"]["query_state"]
    del arguments["decoder"]["init_args"]["attention"]["init_args"]["sharpening"]
    check_same_network(build_model(experiments["current"], LightningModule), checkpoint, "some.ckpt")
    message = r"decoder.query_state: 'current' in the checkpoint, 'previous' in the experiment"
    with pytest.raises(InputError, match=message):
        check_same_network(build_model(experiments["previous"], LightningModule), checkpoint, "some.ckpt")


def test_units_are_compared_by_what_a_list_holds_not_by_its_path(tmp_path: Path) -> None:
    config = transducer(tokenizer=units(tmp_path / "units", "가나다"))
    checkpoint = checkpoint_of(config)
    elsewhere = transducer(tokenizer=units(tmp_path / "other", "가나다"))
    check_same_network(build_model(elsewhere, LightningModule), checkpoint, "some.ckpt")
    for letters, message in (
        ("가다나", "token 5: '나' in the checkpoint, '다' in"),
        ("가나", "number of tokens: 7 .*, 6"),
    ):
        units(tmp_path / "units", letters)  # made anew, in the same place
        with pytest.raises(InputError, match=f"tokenizer, {message}"):
            check_same_network(build_model(config, LightningModule), checkpoint, "some.ckpt")


def pieces(folder: Path, texts: list[str], size: int) -> dict[str, Any]:
    return {"class_path": PIECES, "init_args": {"model": str(train_sentencepiece(texts, size, folder / "pieces"))}}


def test_pieces_are_compared_and_not_where_they_were_trained(tmp_path: Path) -> None:
    texts = ["A CAB", "DEAF BEE", "BED", "HE FED", "GAD", "FACE", "EGG AGE", "CAGED"]
    tokenizer = pieces(tmp_path / "one", texts, 16)
    checkpoint = checkpoint_of(transducer(tokenizer=tokenizer))
    same = pieces(tmp_path / "other", texts, 16)
    with Path(same["init_args"]["model"]).open("ab") as model:
        model.write(b"\x12\x0b\x0a\x09texts.txt")  # trainer_spec.input, as other programs write it
    check_same_network(build_model(transducer(tokenizer=same), LightningModule), checkpoint, "some.ckpt")
    other = transducer(tokenizer=pieces(tmp_path / "third", [text.replace("G", "H") for text in texts], 16))
    with pytest.raises(InputError, match=r"tokenizer, token \d+: '.*' in the checkpoint, '.*' in the experiment"):
        check_same_network(build_model(other, LightningModule), checkpoint, "some.ckpt")


def test_weights_of_other_names_or_shapes_are_refused_before_they_are_loaded() -> None:
    checkpoint = checkpoint_of(transducer())
    name = next(iter(checkpoint["state_dict"]))
    for weights, message in (
        ({**checkpoint["state_dict"], name: torch.zeros(2, 3)}, rf"{re.escape(name)}: \(2, 3\) in the checkpoint"),
        ({**checkpoint["state_dict"], name: "text"}, f"{re.escape(name)}: 'text' in the checkpoint"),
        ({**checkpoint["state_dict"], "more": torch.zeros(2)}, r"more: \(2,\) in the checkpoint, None in"),
        ({}, rf"{re.escape(name)}: None in the checkpoint"),
    ):
        with pytest.raises(InputError, match=f"some.ckpt: the weights do not fit the configuration:\n  {message}"):
            check_same_network(
                build_model(transducer(), LightningModule), {**checkpoint, "state_dict": weights}, "some.ckpt"
            )


def schedule(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "asr_lightning.models.schedules.WarmupCosine",
            "init_args": {"warmup_share": 0.3, **arguments}}  # fmt: skip


def adam(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "torch.optim.Adam", "init_args": {"lr": 3e-3, **arguments}}


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, set()),
        ({"optimizer": adam(lr=1e-5, weight_decay=0.1)}, {"optimizer.lr", "optimizer.weight_decay"}),
        ({"optimizer": adam(betas=[0.9, 0.98])}, {"optimizer.betas"}),
        ({"scheduler": schedule(warmup_share=0.5)}, {"scheduler.warmup_share"}),
        ({"search": {"class_path": "asr_lightning.decoding.transducer.TransducerSearch"}}, set()),
    ],
    ids=["nothing", "lr and decay", "betas", "warm-up", "search"],
)
def test_changed_arguments_of_optimizer_and_schedule_are_found(options: dict[str, Any], changed: set[str]) -> None:
    checkpoint = checkpoint_of(transducer(scheduler=schedule()))
    model = build_model(transducer(**{"scheduler": schedule(), **options}), LightningModule)
    assert check_training_state(model, checkpoint, "some.ckpt", 1) == changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": {"class_path": "torch.optim.SGD"}}, "optimizer: torch.optim.Adam in .*, torch.optim.SGD in"),
        ({"optimizer": None}, "optimizer: torch.optim.Adam in the checkpoint, torch.optim.AdamW in"),
        ({"scheduler": None}, r"scheduler: .*WarmupCosine in the checkpoint, None in the experiment"),
        ({"scheduler": {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.9}}},
         "scheduler: .*WarmupCosine in the checkpoint, .*ExponentialLR in the experiment"),
        ({"optimizer": adam(amsgrad=True)}, "optimizer.amsgrad: False in the checkpoint, True in the experiment"),
    ],
    ids=str,
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    checkpoint = checkpoint_of(transducer(scheduler=schedule()))
    model = build_model(transducer(**{"scheduler": schedule(), **options}), LightningModule)
    with pytest.raises(InputError, match=f"some.ckpt: the state of the training .*:\n  {message}") as raised:
        check_training_state(model, checkpoint, "some.ckpt")
    assert "WeightSelection" in str(raised.value)


def test_no_optimizer_is_the_default_one() -> None:
    written = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
    model = build_model(transducer(optimizer=written), LightningModule)
    assert check_training_state(model, checkpoint_of(transducer(optimizer=None)), "some.ckpt") == set()


def test_weights_without_the_state_of_a_training_are_not_gone_on_with() -> None:
    checkpoint = checkpoint_of(transducer())
    model = build_model(transducer(), LightningModule)
    with pytest.raises(InputError, match="reached epoch 1, beyond trainer.max_epochs 0: increase it"):
        check_training_state(model, checkpoint, "some.ckpt", 0)
    del checkpoint["optimizer_states"]
    with pytest.raises(InputError, match="expected the state of a training to resume, found weights only"):
        check_training_state(model, checkpoint, "some.ckpt")


def test_a_loaded_model_is_the_experiment_s_but_for_its_weights(tmp_path: Path) -> None:
    beam = {"class_path": "asr_lightning.decoding.transducer.TransducerSearch", "init_args": {"beam": 3}}
    checkpoint = checkpoint_of(transducer(search=beam))
    torch.save(checkpoint, tmp_path / "some.ckpt")
    assert load_recognizer(tmp_path / "some.ckpt").search.beam == 3  # type: ignore[attr-defined]
    loaded = load_recognizer(tmp_path / "some.ckpt", transducer())
    assert loaded.search.beam == 1  # type: ignore[attr-defined]
    assert all(torch.equal(value, checkpoint["state_dict"][name]) for name, value in loaded.state_dict().items())
    with pytest.raises(InputError, match="joint_dimension: 32 in the checkpoint, 16 in the experiment"):
        load_recognizer(tmp_path / "some.ckpt", transducer(joint_dimension=16))
    torch.save(checkpoint_of(language_model(dropout=0.1)), tmp_path / "text.ckpt")
    assert load_model(tmp_path / "text.ckpt", LSTMLanguageModel, language_model()).dropout.p == 0.0


@pytest.mark.parametrize(
    ("trained", "beside"),
    [
        ("rnnt_ws", "rnnt_random"),
        ("e2e_ws", "e2e_random"),
    ],
)
def test_experiments_that_are_tested_on_a_checkpoint_of_another_one(trained: str, beside: str) -> None:
    """As ablations do; without the weights, which would take memory."""
    with parameters_without_memory():
        trained_config, experiment = (
            yaml.safe_load((DEMO / f"{name}.yaml").read_text())["model"] for name in (trained, beside)
        )
        compare(trained_config, experiment)
