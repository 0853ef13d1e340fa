import pytest

from asr_lightning.ablations.overrides import as_yaml, differences, override
from asr_lightning.errors import InputError
from asr_lightning.files import load_yaml

EXPERIMENT = {
    "seed_everything": 1,
    "model": {"class_path": "a.Model", "init_args": {"encoder": {"class_path": "a.LSTM", "init_args": {"layers": 3}}}},
    "trainer": {
        "max_epochs": 5,
        "callbacks": [
            {"class_path": "a.Transcripts"},
            {"class_path": "a.Selection", "init_args": {"teacher": "x"}},
            {"class_path": "b.Checkpoint", "init_args": {"every": 1}},
            {"class_path": "b.Checkpoint", "init_args": {"every": 2}},
        ],
    },
}


def test_values_are_changed_where_their_keys_lead() -> None:
    text = as_yaml(EXPERIMENT)
    changed = override(
        EXPERIMENT,
        {
            "seed_everything": 2,
            "model.init_args.encoder.init_args.layers": 5,
            "model.init_args.encoder.init_args.dropout": 0.1,  # has a default, so that it may be missing
            "model.init_args.search": {"class_path": "a.Beam"},
            "trainer.callbacks.Selection.init_args.teacher": "y",
            "trainer.callbacks.Transcripts.init_args.run": "z",  # a class without arguments gets some
            "trainer.callbacks+": {"class_path": "a.Last"},
            "trainer.limit_train_batches": 2,
        },
    )
    assert as_yaml(EXPERIMENT) == text, "the experiment itself stays"
    assert differences(EXPERIMENT, changed) == [
        "seed_everything: 1 before, 2 now",
        "model.init_args.encoder.init_args.layers: 3 before, 5 now",
        "trainer.callbacks.Selection.init_args.teacher: x before, y now",
        "model.init_args.encoder.init_args.dropout: nothing before, 0.1 now",
        "model.init_args.search.class_path: nothing before, a.Beam now",
        "trainer.callbacks.Transcripts.init_args.run: nothing before, z now",
        "trainer.callbacks.Last.class_path: nothing before, a.Last now",
        "trainer.limit_train_batches: nothing before, 2 now",
    ]
    assert load_yaml(as_yaml(changed)) == changed


def test_what_every_run_does_and_callbacks_need_not_stand_in_the_experiment() -> None:
    changed = override({"trainer": {}}, {"initialization.scheme": "he", "trainer.callbacks+": {"class_path": "a.Last"}})
    assert changed == {"initialization": {"scheme": "he"}, "trainer": {"callbacks": [{"class_path": "a.Last"}]}}


def test_a_class_takes_the_place_of_another_with_its_arguments() -> None:
    changed = override(EXPERIMENT, {"model.init_args.encoder": {"class_path": "a.GRU", "init_args": {"units": 4}}})
    assert changed["model"]["init_args"]["encoder"] == {"class_path": "a.GRU", "init_args": {"units": 4}}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "model.init_arg.encoder",
            "model.init_arg.encoder: expected a key of the experiment, found no 'init_arg' at model",
        ),
        (
            "model.init_args.encoder.layers",
            "found no 'layers' at model.init_args.encoder; there is class_path, init_args",
        ),
        (
            "trainer.callbacks.Nothing.init_args.x",
            "found no 'Nothing' at trainer.callbacks; there is Transcripts, Selection",
        ),
        ("trainer.callbacks.Checkpoint.init_args.every", "found no 'Checkpoint' at trainer.callbacks"),  # two of them
        ("trainer.max_epochs.x", "found no 'x' at trainer.max_epochs; there is nothing below it"),
        ("trainer.loggers+", "expected a list to append to at trainer.loggers, found none"),
    ],
)
def test_a_key_that_leads_nowhere_is_named(key: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        override(EXPERIMENT, {key: 1})
    assert message in str(error.value)
