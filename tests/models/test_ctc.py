"""What a recognizer with a CTC output alone adds: the loss per token, and an output without biases."""

import torch
from torch import nn

from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.ctc import CTCRecognizer
from tests.support.tones import TEXTS, batch_of, ctc, deep_speech_2


def make(**changes: bool) -> CTCRecognizer:
    torch.manual_seed(5)
    recognizer = build_recognizer(ctc(deep_speech_2(), **changes))
    assert isinstance(recognizer, CTCRecognizer)
    return recognizer.eval()


def test_the_mean_of_losses_per_token_is_torchs_mean() -> None:
    batch = batch_of([*TEXTS, ""])
    whole, per_token = make(), make(loss_per_token=True)
    encoded, lengths = per_token(batch.audio, batch.audio_lengths)
    targets, target_lengths = per_token.targets(batch)
    log_probabilities = per_token.output(encoded).log_softmax(dim=2).transpose(0, 1)
    torch_loss = nn.CTCLoss(per_token.tokenizer.blank_id, reduction="mean")
    expected = torch_loss(log_probabilities, targets, lengths, target_lengths)
    torch.testing.assert_close(per_token.loss(batch).mean(), expected)
    torch.testing.assert_close(per_token.loss(batch), whole.loss(batch) / target_lengths.clamp(min=1))
    assert whole.loss(batch).mean() > 2 * expected


def test_an_output_may_have_no_biases() -> None:
    with_biases, without = make(), make(output_bias=False)
    names = set(with_biases.state_dict()) - set(without.state_dict())
    assert names == {"output.bias"}
    state = {**without.state_dict(), "output.bias": torch.zeros(len(with_biases.tokenizer))}
    with_biases.load_state_dict(state)
    batch = batch_of()
    torch.testing.assert_close(without.loss(batch), with_biases.loss(batch))
