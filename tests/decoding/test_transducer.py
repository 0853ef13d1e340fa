import math

import pytest
import torch
from torch import Tensor, nn

from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.transducer_beam import _Histories, beam_search
from asr_lightning.decoding.transducer_greedy import WINDOW, continue_greedy_search, greedy_search, greedy_state
from asr_lightning.losses.transducer.logits import transducer_loss
from tests.support.small_transducers import SmallJoint, SmallPredictor, exhaustive, small_transducer

State = tuple[Tensor, ...]


@torch.no_grad()
def naive_greedy(
    encoded: Tensor, predictor: SmallPredictor, joint: SmallJoint, blank: int, max_symbols: int
) -> tuple[tuple[int, ...], float, tuple[int, ...]]:
    """The textbook loop over the frames (T, D) of one utterance."""
    predicted, state = predictor(torch.tensor([[blank]]), predictor.initial_state(1, encoded.device))
    tokens, frames, score = [], [], 0.0
    for frame, vector in enumerate(encoded):
        for symbols in range(max_symbols + 1):
            log_probs = joint(vector, predicted[0, 0]).log_softmax(-1)
            token = blank if symbols == max_symbols else int(log_probs.argmax())
            score += float(log_probs[token])
            if token == blank:
                break
            tokens.append(token)
            frames.append(frame)
            predicted, state = predictor(torch.tensor([[token]]), state)
    return tuple(tokens), score, tuple(frames)


def assert_same(got: Hypothesis, tokens: tuple[int, ...], score: float, frames: tuple[int, ...]) -> None:
    assert got.tokens == tokens
    assert got.frames == frames
    assert got.score == pytest.approx(score, rel=1e-4, abs=1e-4)


LENGTHS = torch.tensor([17, 0, 25, 1, 9, 25])  # beyond several windows of greedy search
assert max(LENGTHS) > 2 * WINDOW


@pytest.mark.parametrize(("seed", "blank", "bias"), [(0, 0, 1.0), (1, 4, 3.0), (2, 2, 4.0), (3, 0, 2.0)])
def test_greedy_equals_the_textbook_alone_in_a_batch_and_with_padding(seed: int, blank: int, bias: float) -> None:
    predictor, joint = small_transducer(seed, 5, blank, bias)
    encoded = 2 * torch.randn(len(LENGTHS), 25, 8)
    batched = greedy_search(encoded, LENGTHS, predictor, joint, blank, max_symbols=3)
    garbage = torch.full((len(LENGTHS), 40, 8), float("nan"))
    for row, length in enumerate(LENGTHS.tolist()):
        garbage[row, :length] = encoded[row, :length]
    padded = greedy_search(garbage, LENGTHS, predictor, joint, blank, max_symbols=3)
    for row, length in enumerate(LENGTHS.tolist()):
        expected = naive_greedy(encoded[row, :length], predictor, joint, blank, 3)
        [alone] = greedy_search(encoded[row : row + 1, :length], LENGTHS[row : row + 1], predictor, joint, blank, 3)
        for got in (batched[row], padded[row], alone):
            assert_same(got, *expected)
    frames = batched[2].frames
    assert 1 < len(set(frames)) < 25, "some frames emit, some do not"
    assert len(frames) > len(set(frames)), "some frame emits several symbols"


@pytest.mark.parametrize("pieces", [[1] * 25, [3, 0, 22], [10, 15], [25]])
def test_greedy_search_goes_on_where_it_stopped(pieces: list[int]) -> None:
    predictor, joint = small_transducer(1, 5, 4, 3.0)
    encoded = 2 * torch.randn(2, 25, 8)
    lengths = torch.tensor([25, 19])
    complete = greedy_search(encoded, lengths, predictor, joint, 4, max_symbols=2)
    state, start = greedy_state(2, predictor, 4, encoded.device), 0
    tokens: list[list[int]] = [[], []]
    frames: list[list[int]] = [[], []]
    scores = [0.0, 0.0]
    for size in pieces:
        piece_lengths = (lengths - start).clamp(0, size)
        hypotheses, state = continue_greedy_search(
            encoded[:, start : start + size], piece_lengths, predictor, joint, 4, state, max_symbols=2
        )
        for row, hypothesis in enumerate(hypotheses):
            tokens[row] += hypothesis.tokens
            frames[row] += [start + frame for frame in hypothesis.frames]
            scores[row] += hypothesis.score
        start += size
    for row, expected in enumerate(complete):
        assert len(expected.tokens) > 5
        assert_same(Hypothesis(tuple(tokens[row]), scores[row], tuple(frames[row])),
                    expected.tokens, expected.score, expected.frames)  # fmt: skip


class ScriptedPredictor:
    """Count the tokens emitted so far, and record the tokens that were read."""

    def __init__(self) -> None:
        self.fed: list[int] = []

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        return (torch.full((batch_size, 1), -1.0, device=device),)

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        self.fed += tokens.flatten().tolist()
        count = state[0] + 1
        return count.unsqueeze(1), (count,)


def scripted_joint(encoded: Tensor, predicted: Tensor) -> Tensor:
    """Scores of a frame's script: the number of earlier tokens, then the tokens, then blanks (0)."""
    earlier, script = encoded[..., :1], encoded[..., 1:]
    index = (predicted - earlier).clamp(0, 4).long().expand(*script.shape[:-1], 1)
    return 9.0 * nn.functional.one_hot(script.gather(-1, index).squeeze(-1).long(), 4).float()


def scripted_frames(script: list[list[int]]) -> Tensor:
    counts = [sum(len(tokens) for tokens in script[:frame]) for frame in range(len(script))]
    return torch.tensor(
        [[n, *tokens, *[0] * (5 - len(tokens))] for n, tokens in zip(counts, script, strict=True)]
    ).float()


SCRIPTS: list[list[list[int]]] = [[[], [3, 1], [], [], [2, 2, 2, 2]], [[1], [], [], [], []], [[], [], [], [], []]]


def test_greedy_emits_several_symbols_per_frame_and_advances_on_tokens_only() -> None:
    predictor = ScriptedPredictor()
    encoded = torch.stack([scripted_frames(script) for script in SCRIPTS])
    hypotheses = greedy_search(encoded, torch.full((3,), 5), predictor, scripted_joint, blank_id=0)
    assert [hypothesis.tokens for hypothesis in hypotheses] == [(3, 1, 2, 2, 2, 2), (1,), ()]
    assert [hypothesis.frames for hypothesis in hypotheses] == [(1, 1, 4, 4, 4, 4), (0,), ()]
    assert sorted(predictor.fed) == [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]  # a start each, then every token once


def test_greedy_reads_no_token_again_whatever_the_neighbours_do() -> None:
    predictor, joint = small_transducer(3, 5, 0, 2.0)
    hypotheses = greedy_search(2 * torch.randn(6, 25, 8), LENGTHS, predictor, joint, 0)
    emitted = [token for hypothesis in hypotheses for token in hypothesis.tokens]
    assert len(emitted) > 20
    assert sorted(predictor.fed) == sorted([0] * 6 + emitted)


@pytest.mark.parametrize("limit", [1, 3])
def test_a_network_that_never_stops_is_stopped_in_every_frame(limit: int) -> None:
    always = torch.tensor([-4.0, 5.0, 0.0])
    log_probs = always.log_softmax(0)
    score = 4 * (limit * float(log_probs[1]) + float(log_probs[0]))

    def joint(encoded: Tensor, predicted: Tensor) -> Tensor:
        return always.expand(*(encoded + predicted).shape[:-1], 3)

    encoded, lengths = torch.zeros(2, 6, 1), torch.tensor([4, 2])
    frames = tuple(frame for frame in range(4) for _ in range(limit))
    hypotheses = greedy_search(encoded, lengths, ScriptedPredictor(), joint, 0, max_symbols=limit)
    assert_same(hypotheses[0], (1,) * 4 * limit, score, frames)
    assert hypotheses[1].tokens == (1,) * 2 * limit
    longest = beam_search(encoded, lengths, ScriptedPredictor(), joint, 0, beam=1000, max_symbols=limit)[0]
    assert max(len(hypothesis.tokens) for hypothesis in longest) == 4 * limit
    complete = next(hypothesis for hypothesis in longest if hypothesis.tokens == (1,) * 4 * limit)
    assert_same(complete, (1,) * 4 * limit, score, frames)


@pytest.mark.parametrize(("seed", "blank", "bias"), [(0, 0, 0.0), (1, 1, 1.0), (2, 2, 2.0), (3, 0, -1.0), (4, 0, 1.0)])
def test_a_wide_beam_finds_everything_with_its_exact_probability(seed: int, blank: int, bias: float) -> None:
    predictor, joint = small_transducer(seed, 3, blank, bias)
    encoded = 2 * torch.randn(1, 3, 8)
    [hypotheses] = beam_search(encoded, torch.tensor([3]), predictor, joint, blank, beam=1000, max_symbols=2)
    expected = exhaustive(encoded[0], predictor, joint, blank, 2)
    assert len(expected) == 127
    totals = {tokens: total for tokens, (total, _) in expected.items()}
    assert {h.tokens: h.score for h in hypotheses} == pytest.approx(totals, rel=1e-4, abs=1e-4)
    assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    assert hypotheses[0].tokens == max(totals, key=lambda tokens: totals[tokens])
    assert {h.tokens: h.frames for h in hypotheses} == {tokens: frames for tokens, (_, frames) in expected.items()}


def test_of_equally_probable_alignments_the_tokens_come_early() -> None:
    def joint(encoded: Tensor, predicted: Tensor) -> Tensor:
        return torch.zeros(*(encoded + predicted).shape[:-1], 2)

    [hypotheses] = beam_search(
        torch.zeros(1, 3, 1), torch.tensor([3]), ScriptedPredictor(), joint, 0, 1000, max_symbols=1
    )
    assert {h.tokens: h.frames for h in hypotheses} == {(1,) * count: tuple(range(count)) for count in range(4)}


@pytest.mark.parametrize("frames", [1, 2])
def test_a_vocabulary_of_the_blank_alone(frames: int) -> None:
    arguments = (torch.zeros(1, frames, 1), torch.tensor([frames]), ScriptedPredictor())

    def joint(encoded: Tensor, predicted: Tensor) -> Tensor:
        return torch.zeros(*(encoded + predicted).shape[:-1], 1)

    assert beam_search(*arguments, joint, 0) == [[Hypothesis((), 0.0)]] == [greedy_search(*arguments, joint, 0)]


def test_a_wide_beam_is_the_transducer_loss_where_the_limit_does_not_bind() -> None:
    predictor, joint = small_transducer(5, 3, 0, 2.0)
    encoded = 2 * torch.randn(1, 3, 8)
    [hypotheses] = beam_search(encoded, torch.tensor([3]), predictor, joint, 0, beam=1000, max_symbols=3)
    short = [hypothesis for hypothesis in hypotheses if len(hypothesis.tokens) <= 3]
    assert len(short) == 1 + 2 + 4 + 8
    for hypothesis in short:
        tokens = torch.tensor([hypothesis.tokens], dtype=torch.int64).reshape(1, -1)
        predicted, _ = predictor(
            torch.cat([torch.zeros(1, 1).long(), tokens], dim=1), predictor.initial_state(1, encoded.device)
        )
        logits = joint(encoded.unsqueeze(2), predicted.unsqueeze(1))
        [loss] = transducer_loss(logits, tokens, torch.tensor([3]), torch.tensor([len(hypothesis.tokens)]), 0).tolist()
        assert hypothesis.score == pytest.approx(-loss, rel=1e-4, abs=1e-4)


def test_beam_reads_every_prefix_once_whichever_utterance_has_it() -> None:
    predictor, joint = small_transducer(0, 3, 0, 0.0)
    beam_search(2 * torch.randn(2, 3, 8), torch.tensor([3, 3]), predictor, joint, 0, beam=1000, max_symbols=2)
    assert len(predictor.fed) == 127


@pytest.mark.parametrize(("seed", "bias"), [(0, 1.0), (1, 3.0), (2, 6.0)])
def test_narrow_beams_are_sorted_distinct_bounded_and_do_not_see_neighbours(seed: int, bias: float) -> None:
    predictor, joint = small_transducer(seed, 5, 0, bias)
    encoded = 2 * torch.randn(len(LENGTHS), 25, 8)
    garbage = torch.cat([encoded, torch.full((len(LENGTHS), 5, 8), float("nan"))], dim=1)
    results = beam_search(garbage, LENGTHS, predictor, joint, 0, beam=4, max_symbols=3)
    for row, length in enumerate(LENGTHS.tolist()):
        scores = [hypothesis.score for hypothesis in results[row]]
        assert scores == sorted(scores, reverse=True)
        assert len({hypothesis.tokens for hypothesis in results[row]}) == len(results[row]) == (4 if length else 1)
        alone = beam_search(encoded[row : row + 1, :length], LENGTHS[row : row + 1], predictor, joint, 0, 4, 3)
        for got, expected in zip(results[row], alone[0], strict=True):
            assert_same(got, expected.tokens, expected.score, expected.frames)
    assert any(0 < len(hypotheses[0].tokens) for hypotheses in results)


def test_frames_of_the_beam_are_those_of_the_script() -> None:
    encoded = torch.stack([scripted_frames(script) for script in SCRIPTS])
    results = beam_search(encoded, torch.full((3,), 5), ScriptedPredictor(), scripted_joint, 0, beam=4)
    assert [hypotheses[0].tokens for hypotheses in results] == [(3, 1, 2, 2, 2, 2), (1,), ()]
    assert [hypotheses[0].frames for hypotheses in results] == [(1, 1, 4, 4, 4, 4), (0,), ()]


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_is_at_least_as_probable_as_the_greedy_path(seed: int) -> None:
    predictor, joint = small_transducer(seed, 3, 0, 1.0)
    encoded, lengths = 2 * torch.randn(2, 3, 8), torch.tensor([3, 2])
    greedy = greedy_search(encoded, lengths, predictor, joint, 0, max_symbols=2)
    results = beam_search(encoded, lengths, predictor, joint, 0, beam=1000, max_symbols=2)
    for path, hypotheses in zip(greedy, results, strict=True):
        same = next(hypothesis for hypothesis in hypotheses if hypothesis.tokens == path.tokens)
        assert hypotheses[0].score >= same.score >= path.score - 1e-5


def test_the_probability_of_all_that_can_be_said_is_at_most_one() -> None:
    predictor, joint = small_transducer(6, 3, 0, 6.0)
    [hypotheses] = beam_search(torch.randn(1, 3, 8), torch.tensor([3]), predictor, joint, 0, beam=1000, max_symbols=3)
    assert 0.9 < sum(math.exp(hypothesis.score) for hypothesis in hypotheses) <= 1.0 + 1e-5


def test_no_utterances_and_no_frames() -> None:
    predictor, joint = small_transducer(0, 3, 0, 0.0)
    nothing = Hypothesis((), 0.0, ())
    none, zeros = torch.zeros(0, 4, 8), torch.zeros(2, dtype=torch.int64)
    assert greedy_search(none, zeros[:0], predictor, joint, 0) == []
    assert beam_search(none, zeros[:0], predictor, joint, 0) == []
    for encoded in (torch.randn(2, 4, 8), torch.zeros(2, 0, 8)):
        assert greedy_search(encoded, zeros, predictor, joint, 0) == [nothing, nothing]
        assert beam_search(encoded, zeros, predictor, joint, 0) == [[nothing], [nothing]]


def test_a_beam_or_limit_of_nothing_is_refused() -> None:
    predictor, joint = small_transducer(0, 3, 0, 0.0)
    arguments = (torch.randn(1, 4, 8), torch.tensor([4]), predictor, joint, 0)
    with pytest.raises(ValueError, match="max_symbols .* got 0"):
        greedy_search(*arguments, max_symbols=0)
    with pytest.raises(ValueError, match="got beam 0 and max_symbols 5"):
        beam_search(*arguments, beam=0)
    with pytest.raises(ValueError, match="got beam 8 and max_symbols 0"):
        beam_search(*arguments, max_symbols=0)


@pytest.mark.parametrize(("emission", "likelier"), [((0.1, 0.4), 1), ((0.4, 0.1), 0)])
def test_merged_alignments_add_up_and_keep_the_frames_of_the_likelier(
    emission: tuple[float, float], likelier: int
) -> None:
    encoded = torch.tensor([[[1 - p, p] for p in emission]]).log()
    [hypotheses] = beam_search(
        encoded, torch.tensor([2]), ScriptedPredictor(), lambda e, p: e + 0 * p, 0, max_symbols=1
    )
    once = next(hypothesis for hypothesis in hypotheses if hypothesis.tokens == (1,))
    assert_same(once, (1,), math.log(0.5 * 0.9 * 0.6), (likelier,))


def test_the_beam_remembers_what_it_may_need_again_and_no_more() -> None:
    histories = _Histories(ScriptedPredictor(), scripted_joint, 0, torch.zeros(1, 1, 1), None)
    assert histories([(), (1,), (2,), (1,)])[0].tolist() == [[0.0], [1.0], [1.0], [1.0]]
    assert histories([(1, 2), (2, 2)])[0].tolist() == [[2.0], [2.0]]
    histories.keep_only([(1,)])
    assert set(histories.slots) == {(1,), (1, 2)}
    size = len(histories.tables[0])
    assert histories([(1, 2, 3), (1, 3)])[0].tolist() == [[3.0], [2.0]]
    assert len(histories.tables[0]) == size, "slots of forgotten sequences are used again"
    assert histories([(1, 2), (1,)])[0].tolist() == [[2.0], [1.0]]
