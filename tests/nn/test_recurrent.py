import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr_lightning.nn.recurrent import BidirectionalLSTM


def test_it_is_the_bidirectional_lstm_of_packed_sequences() -> None:
    torch.manual_seed(0)
    ours, theirs = BidirectionalLSTM(3, 4), nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(theirs, name).copy_(getattr(ours.forward_lstm, name))
            getattr(theirs, f"{name}_reverse").copy_(getattr(ours.backward_lstm, name))
    lengths = torch.tensor([2, 6, 1, 5])
    x = torch.randn(4, 8, 3, requires_grad=True)  # random behind the ends, and longer than the longest
    packed, _ = theirs(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    y = ours(x, lengths)
    assert y.shape == (4, 8, 8)
    real = torch.arange(6) < lengths.unsqueeze(1)
    torch.testing.assert_close(y[:, :6][real], expected[real])

    cotangent = torch.randn_like(expected[real])
    [gradient] = torch.autograd.grad(y[:, :6][real], x, cotangent)
    [expected_gradient] = torch.autograd.grad(expected[real], x, cotangent)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_row_without_frames_changes_no_other() -> None:
    torch.manual_seed(0)
    lstm, x = BidirectionalLSTM(3, 4), torch.randn(2, 5, 3)
    y = lstm(x, torch.tensor([0, 5]))
    assert y.isfinite().all()
    torch.testing.assert_close(y[1:], lstm(x[1:], torch.tensor([5])))
