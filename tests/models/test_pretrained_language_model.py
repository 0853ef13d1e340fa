"""Scores of a language model for a search, token by token and for whole texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asr_lightning.errors import InputError
from asr_lightning.models import language_model
from asr_lightning.models.language_model import LSTMLanguageModel, PretrainedLanguageModel
from asr_lightning.text.tokenizers import CharacterTokenizer, SentencePieceTokenizer, train_sentencepiece
from tests.support.sentences import TEXTS, direct_log_probability, make, save


def pretrained(folder: Path, **changes: Any) -> tuple[LSTMLanguageModel, PretrainedLanguageModel]:
    model = make(dropout=0.3, **changes).eval()
    return model, PretrainedLanguageModel(save(model, folder / "model.ckpt"))


def test_scores_are_log_probabilities_and_do_not_depend_on_company(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, scorer = pretrained(tmp_path)
    expected = [direct_log_probability(model, text) for text in TEXTS]
    assert scorer.score(TEXTS) == pytest.approx(expected, abs=1e-4)
    assert [scorer.score([text])[0] for text in TEXTS] == pytest.approx(expected, abs=1e-4)
    assert scorer.score([]) == []
    largest = 0

    def watched(self: LSTMLanguageModel, tokens: Tensor, state: Any, forward: Any = LSTMLanguageModel.forward) -> Any:
        nonlocal largest
        largest = max(largest, tokens.numel())
        return forward(self, tokens, state)

    monkeypatch.setattr(LSTMLanguageModel, "forward", watched)
    monkeypatch.setattr(language_model, "SCORED_AT_ONCE", 12)  # of 42 tokens in the longest text
    assert scorer.score(TEXTS) == pytest.approx(expected, abs=1e-4)
    assert 1 < largest <= 12


def test_steps_give_what_whole_texts_give_also_when_hypotheses_change_places(tmp_path: Path) -> None:
    _, scorer = pretrained(tmp_path)
    tokenizer = CharacterTokenizer()
    scorer.prepare(tokenizer, torch.device("cpu"))
    texts = ["DEAF", "CABS", "BEDS", "CAGE"]  # of one length
    rows = torch.tensor([[*tokenizer.encode(text), tokenizer.eos_id] for text in texts])
    tokens, state = torch.full((4,), tokenizer.eos_id), scorer.initial_state(4)
    totals, order = torch.zeros(4), torch.arange(4)
    for position in range(rows.shape[1]):
        log_probs, state = scorer.step(tokens, state)
        assert log_probs.shape == (4, len(tokenizer))
        torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(4))
        tokens = rows[order, position]
        totals += log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        permutation = torch.tensor([2, 0, 3, 1])
        tokens, totals, order, state = (
            tokens[permutation],
            totals[permutation],
            order[permutation],
            tuple(part[permutation] for part in state),
        )
    expected = scorer.score([texts[index] for index in order])
    assert totals.tolist() == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 2) for score in expected}) == 4


def test_a_recognizer_of_other_tokens_is_only_rescored(tmp_path: Path) -> None:
    _, scorer = pretrained(tmp_path)
    expected = scorer.score(TEXTS)
    pieces = SentencePieceTokenizer(str(train_sentencepiece(["A CAB", "A BEE"] * 9, 9, tmp_path / "pieces")))
    scorer.prepare(pieces, torch.device("cpu"))
    with pytest.raises(InputError, match="other tokens than the recognizer: 31, not 9"):
        scorer.initial_state(2)
    assert scorer.score(TEXTS) == expected
    turned = CharacterTokenizer()
    turned.tokens = (*turned.tokens[:-2], "Z", "Y")
    scorer.prepare(turned, torch.device("cpu"))
    with pytest.raises(InputError, match="token 29 is 'Y', not 'Z'"):
        scorer.initial_state(2)
    scorer.prepare(CharacterTokenizer(), torch.device("cpu"))
    assert [part.shape for part in scorer.initial_state(2)] == [(2, 16)] * 4


def test_it_is_no_part_of_what_uses_it_and_reads_its_file_once(tmp_path: Path) -> None:
    _, scorer = pretrained(tmp_path)
    user = nn.Linear(2, 2)
    user.search = scorer  # type: ignore[assignment]
    scorer.prepare(CharacterTokenizer(), torch.device("cpu"))
    Path(scorer.checkpoint).unlink()
    user.train()
    first, second = (scorer.step(torch.tensor([2]), scorer.initial_state(1))[0] for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad  # without dropout
    assert scorer.score(["A"]) == scorer.score(["A"])
    assert set(user.state_dict()) == {"weight", "bias"} and len(list(user.modules())) == 1


def test_scores_keep_their_precision_where_a_recognizer_runs_in_less(tmp_path: Path) -> None:
    _, scorer = pretrained(tmp_path)
    scorer.prepare(CharacterTokenizer(), torch.device("cpu"))

    def scores() -> tuple[Sequence[float], Tensor]:
        return scorer.score(TEXTS), scorer.step(torch.tensor([2]), scorer.initial_state(1))[0]

    texts, step = scores()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        texts_in_less, step_in_less = scores()
    assert texts_in_less == texts and torch.equal(step_in_less, step)


def test_a_missing_checkpoint_is_told_when_it_is_needed(tmp_path: Path) -> None:
    scorer = PretrainedLanguageModel(str(tmp_path / "none.ckpt"), made_by="lightning fit -c lm.yaml")
    with pytest.raises(InputError, match=r"no checkpoint at .*none\.ckpt .*make it with `lightning fit -c lm.yaml`"):
        scorer.prepare(CharacterTokenizer(), torch.device("cpu"))
