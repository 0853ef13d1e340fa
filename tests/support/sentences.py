"""A small language model, and what its probabilities are by definition."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from asr_lightning.batch import TextBatch
from asr_lightning.models.checkpoints import build_model
from asr_lightning.models.language_model import LSTMLanguageModel
from asr_lightning.text.tokenizers import CharacterTokenizer
from tests.support.tones import make_trainer

TEXTS = ["A CAB", "", "DEAF BEE", "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG", "BED"]


def configuration(**changes: Any) -> dict[str, Any]:
    arguments = {
        "tokenizer": {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"},
        "embedding_dimension": 8,
        "hidden": 16,
        "layers": 2,
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
    }
    return {
        "class_path": "asr_lightning.models.language_model.LSTMLanguageModel",
        "init_args": {**arguments, **changes},
    }


def make(**changes: Any) -> LSTMLanguageModel:
    torch.manual_seed(5)
    model = build_model(configuration(**changes), LSTMLanguageModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that probabilities are far from alike
    return model


def batch_of(*texts: str) -> TextBatch:
    return TextBatch([f"line {number}" for number in range(len(texts))], list(texts))


def save(model: nn.Module, path: Path) -> str:
    trainer = make_trainer(path.parent)
    trainer.strategy.connect(model)  # type: ignore[arg-type]
    trainer.save_checkpoint(path)
    return str(path)


@torch.no_grad()
def direct_log_probability(model: LSTMLanguageModel, text: str) -> float:
    """Log probability by definition, with torch's own LSTM cells: the sum over tokens, each given those before it."""
    tokenizer, total = CharacterTokenizer(), 0.0
    states = [(torch.zeros(1, 16), torch.zeros(1, 16)) for _ in model.layers]
    previous = tokenizer.eos_id
    for token in [*tokenizer.encode(text), tokenizer.eos_id]:
        x = model.embedding.weight[previous].unsqueeze(0)
        for number, layer in enumerate(model.layers):
            weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
            states[number] = torch.lstm_cell(x, states[number], *weights)  # type: ignore[assignment, arg-type]
            x = states[number][0]
        scores = model.output.weight @ x[0] + model.output.bias
        total += float(scores.double().log_softmax(0)[token])
        previous = token
    return total
