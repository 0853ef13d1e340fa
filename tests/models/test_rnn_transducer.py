from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.normalized_transducer import RectifiedJoint
from asr_lightning.models.rnn_transducer import (
    LSTMPredictor,
    Predictor,
    RNNTransducer,
    StatelessPredictor,
)
from tests.support.tones import batch_of, lstm_encoder, transducer

PREDICTORS: dict[str, Predictor] = {
    "LSTM": LSTMPredictor(6),
    "two LSTMs": LSTMPredictor(6, layers=2, dropout=0.3),
    "the last token": StatelessPredictor(6, context=1),
    "the last two": StatelessPredictor(6, context=2),
    "the last four": StatelessPredictor(6, context=4, dropout=0.3),
}


def make(**changes: Any) -> RNNTransducer:
    torch.manual_seed(2)
    recognizer = build_recognizer(transducer(**changes))
    assert isinstance(recognizer, RNNTransducer)
    return recognizer.eval()


@pytest.fixture(params=PREDICTORS)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return PREDICTORS[request.param].eval()


@torch.no_grad()
def test_token_by_token_is_as_all_at_once(predictor: Predictor) -> None:
    x = torch.randn(3, 7, 6)
    together, last = predictor(x, predictor.initial_state(3, x.device))
    assert together.shape == (3, 7, 6)
    state = predictor.initial_state(3, x.device)
    assert all(len(part) == 3 for part in state)
    outputs = []
    for position in range(7):
        output, state = predictor(x[:, position : position + 1], state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), together)
    for part, expected in zip(state, last, strict=True):
        torch.testing.assert_close(part, expected)


@torch.no_grad()
def test_rows_of_a_state_can_change_places(predictor: Predictor) -> None:
    x, order = torch.randn(3, 4, 6), torch.tensor([2, 0, 0])
    _, state = predictor(x[:, :3], predictor.initial_state(3, x.device))
    expected, _ = predictor(x[:, 3:], state)
    output, _ = predictor(x[order, 3:], tuple(part[order] for part in state))
    torch.testing.assert_close(output, expected[order])


@torch.no_grad()
def test_predictions_do_not_depend_on_later_tokens(predictor: Predictor) -> None:
    x = torch.randn(1, 6, 6)
    changed = x.clone()
    changed[:, 4] += 1.0
    y, _ = predictor(x, predictor.initial_state(1, x.device))
    y_changed, _ = predictor(changed, predictor.initial_state(1, x.device))
    torch.testing.assert_close(y_changed[:, :4], y[:, :4])
    assert (y_changed[:, 4] - y[:, 4]).abs().max() > 1e-3


@pytest.mark.parametrize("context", [1, 2, 3])
@torch.no_grad()
def test_a_stateless_predictor_forgets(context: int) -> None:
    predictor, x = StatelessPredictor(6, context).eval(), torch.randn(1, 6, 6)
    changed = x.clone()
    changed[:, 0] += 1.0
    y, _ = predictor(x, predictor.initial_state(1, x.device))
    y_changed, _ = predictor(changed, predictor.initial_state(1, x.device))
    differs = ((y_changed - y).abs().amax(dim=2) > 1e-4).squeeze(0).tolist()
    assert differs == [True] * context + [False] * (6 - context)


def written_out(recognizer: RNNTransducer, text: str, encoded: Tensor) -> float:
    """The loss of one utterance, encoded as (T, D), summed over all its alignments."""
    blank, target = recognizer.tokenizer.blank_id, recognizer.tokenizer.encode(text)
    state = recognizer.prediction.initial_state(1, encoded.device)
    scores: list[list[Tensor]] = []  # after u tokens, in frame t: (V,)
    for token in [blank, *target]:
        history, state = recognizer.prediction(torch.tensor([[token]]), state)
        frames = recognizer.encoder_projection(encoded)
        scores.append([recognizer.joint(frame, history[0, 0]).double().log_softmax(0) for frame in frames])
    totals = []
    for alignment in combinations_with_replacement(range(len(encoded)), len(target)):
        total, emitted = 0.0, 0
        for frame in range(len(encoded)):
            for _ in range(alignment.count(frame)):
                total += float(scores[emitted][frame][target[emitted]])
                emitted += 1
            total += float(scores[emitted][frame][blank])
        totals.append(total)
    return -float(torch.tensor(totals, dtype=torch.float64).logsumexp(0))


@pytest.mark.parametrize("subsampling", [4, 8])
@torch.no_grad()
def test_the_loss_sums_over_all_alignments_of_the_spoken_text(subsampling: int) -> None:
    recognizer = make(encoder=lstm_encoder(20, subsampling=subsampling))
    for parameter in recognizer.parameters():
        parameter.mul_(2.0)  # scores that differ
    batch = batch_of(["A", "BAD", "", "HE"])
    encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
    expected = [
        written_out(recognizer, text, row[:length])
        for text, row, length in zip(batch.texts, encoded, lengths.tolist(), strict=True)
    ]
    torch.testing.assert_close(recognizer.loss(batch), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def named_loss(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"asr_lightning.losses.transducer.{name}", "init_args": arguments}


@torch.no_grad()
def test_a_class_names_the_loss_and_a_short_name_stands_for_a_class() -> None:
    batch = batch_of()
    expected = make().loss(batch)
    exact = ["fused", "torchaudio", named_loss("joint.ExactLoss"), named_loss("logits.TorchaudioLoss")]
    for loss in [*exact, named_loss("pruned.PrunedLoss", width=20)]:
        torch.testing.assert_close(make(transducer_loss=loss).loss(batch), expected, rtol=1e-4, atol=1e-4)
    narrow = make(transducer_loss=named_loss("pruned.PrunedLoss", width=2, left_out=None)).loss(batch)
    assert (narrow > expected - 1e-4).all() and (narrow > expected + 1e-2).any()
    bounded = make(transducer_loss=named_loss("pruned.PrunedLoss", width=2)).loss(batch)
    assert (bounded > expected - 1e-4).all() and (bounded < narrow).any(), "a network that has learned nothing needs it"
    for loss in (named_loss("joint.ExactLoss", delay_penalty=0.5), named_loss("pruned.PrunedLoss", delay_penalty=0.5)):
        assert (make(transducer_loss=loss).loss(batch) - expected).abs().max() > 0.1


@pytest.mark.parametrize("weight", [0.3, 0.9])
@torch.no_grad()
def test_ctc_takes_its_share_of_the_loss(weight: float) -> None:
    recognizer, batch = make(ctc_weight=weight), batch_of()
    assert recognizer.ctc is not None
    encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
    log_probs = recognizer.ctc(encoded).log_softmax(2).transpose(0, 1)
    targets, target_lengths = recognizer.targets(batch)
    aligned = functional.ctc_loss(log_probs, targets, lengths, target_lengths, blank=0, reduction="none")
    mixed = recognizer.loss(batch)
    recognizer.ctc = None
    torch.testing.assert_close(mixed, (1 - weight) * recognizer.loss(batch) + weight * aligned)


def searching(**numbers: int) -> dict[str, Any]:
    return {"class_path": "asr_lightning.decoding.transducer.TransducerSearch", "init_args": numbers}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ctc_weight": 1.0}, "ctc_weight"),  # nothing would be left for the decoder to learn
        ({"ctc_weight": -0.1}, "ctc_weight"),
        ({"search": searching(beam=0)}, "beam=0"),
        ({"transducer_loss": named_loss("pruned.PrunedLoss", width=1)}, "width of at least 2"),
        ({"transducer_loss": "exact"}, "exact"),
        ({"search": searching(max_symbols=0)}, "max_symbols=0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_without_a_share_there_is_no_ctc_output() -> None:
    assert not [name for name, _ in make(ctc_weight=0.0).named_parameters() if name.startswith("ctc")]


@pytest.mark.parametrize("beam", [2, 8])
def test_the_beam_finds_what_is_at_least_as_probable_as_the_greedy_path(beam: int) -> None:
    recognizer, batch = make(), batch_of()
    optimizer = recognizer.configure_optimizers()
    for _ in range(30):  # in between knowing nothing and everything
        optimizer.zero_grad()
        recognizer.loss(batch).mean().backward()
        optimizer.step()
    greedy = recognizer.recognize(batch)
    assert all(len(hypotheses) == 1 for hypotheses in greedy)
    recognizer.search.beam = beam
    n_best_lists = recognizer.recognize(batch)
    assert recognizer.transcribe(batch) == [recognizer.tokenizer.decode(beams[0].tokens) for beams in n_best_lists]
    for [path], hypotheses in zip(greedy, n_best_lists, strict=True):
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True) and len(scores) <= beam
        assert scores[0] >= path.score - 1e-4


def test_a_joint_network_of_another_form_is_not_trained_as_if_it_were_ours() -> None:
    recognizer = make()
    assert recognizer.loss(batch_of()).isfinite().all()
    recognizer.joint = RectifiedJoint(recognizer.tokenizer.tokens, recognizer.encoder_projection.out_features)
    with pytest.raises(
        InputError, match="got RectifiedJoint with a forward of its own: give the network a decoder_loss"
    ):
        recognizer.loss(batch_of())
