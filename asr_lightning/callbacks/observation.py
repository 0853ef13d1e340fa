"""Outputs of named modules while a recognizer encodes a batch and its decoder reads tokens.

A path as `encoder.layers.2` means the output of the module, the first tensor where there are several;
`encoder.layers.2:input` means its input, `decoder.attention:weights` the weights of an attention.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from asr_lightning.analysis.activations import Unit
from asr_lightning.analysis.token_times import token_spans
from asr_lightning.batch import Batch
from asr_lightning.errors import InputError
from asr_lightning.models.evaluation import evaluating
from asr_lightning.models.recognizer import CTCOutput, Recognizer

KINDS = ("output", "input", "weights")


@dataclass
class ModuleOutput:
    """The output of a module for a batch.

    Attributes:
        unit: What a row is: a frame, or a token of what was recognized (and one for its end).
        values: (B, N, D).
        lengths: (B,) how many of the N rows are real.
    """

    unit: Unit
    values: Tensor
    lengths: Tensor


@dataclass
class Observation:
    """Outputs of modules for a batch, with the lengths and times of frames.

    Attributes:
        outputs: By the name that the caller gave.
        feature_lengths: (B,) feature frames.
        lengths: (B,) encoder frames.
        log_probs: (B, T, V) of the CTC output, if there is one.
        hop: Seconds between feature frames.
        window: Seconds of a feature frame.
    """

    outputs: dict[str, ModuleOutput]
    feature_lengths: Tensor
    lengths: Tensor
    log_probs: Tensor | None
    hop: float
    window: float

    def spans(self, lengths: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return when the frames of a layer begin and end, (T,) seconds each.

        Frame i of a layer that has s times fewer frames than the features stands for the feature frame i · s. Its span
        is as long as the distance of two frames, around the center of what the features were computed from.

        Args:
            lengths: (B,) frames of the layer.
        """
        step = max(1, round(int(self.feature_lengths.max()) / max(1, int(lengths.max())))) * self.hop
        centers = np.arange(int(lengths.max())) * step + self.window / 2
        return centers - step / 2, centers + step / 2

    def onsets(self, row: int, tokens: Sequence[int], blank_id: int) -> list[int]:
        """Return the encoder frame at which each token begins, by the CTC output; empty where there is none."""
        if self.log_probs is None:
            return []
        aligned = token_spans(self.log_probs[row, : int(self.lengths[row])], tokens, blank_id)
        return [first for first, _ in aligned or []]


@dataclass
class _Recorder:
    """Collects outputs of modules, and the lengths of sequences within the encoder."""

    calls: dict[str, list[Tensor]] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    lengths: dict[int, Tensor] = field(default_factory=dict)  # by the number of frames of the longest
    phase: Unit = "frame"


def check_paths(recognizer: nn.Module, paths: Mapping[str, str]) -> None:
    """Check that the named modules exist.

    Raises:
        InputError: A module does not exist.
    """
    modules = dict(recognizer.named_modules())
    for path in paths.values():
        name, _, kind = path.partition(":")
        if name not in modules or (kind or "output") not in KINDS:
            similar = [other for other in modules if other.startswith(name.split(".")[0])][:12]
            raise InputError(
                f"expected the path of a module of {type(recognizer).__name__}, maybe with `:input` or `:weights` "
                f"behind it, got {path!r}; there are, for instance, {', '.join(similar or list(modules)[1:12])}"
            )


@torch.no_grad()
def observe(
    recognizer: Recognizer, batch: Batch, paths: Mapping[str, str], tokens: Sequence[Sequence[int]]
) -> Observation:
    """Encode a batch, let the decoder read tokens, and return the outputs of modules.

    Args:
        recognizer: In evaluation mode.
        batch: B utterances, one at least.
        paths: Of modules, by the names that the caller gives them.
        tokens: Of each of the B utterances, usually what was recognized.

    Raises:
        InputError: A module was not used, or gives nothing that has a row per frame or per token.
    """
    recorder = _Recorder()
    head = ctc_output(recognizer)
    with ExitStack() as stack:
        for handle in _hooks(recognizer, paths, recorder):
            stack.callback(handle.remove)
        with evaluating(recognizer):
            features, feature_lengths = recognizer.featurize(batch.audio, batch.audio_lengths)
            encoded, lengths = recognizer.encoder(features, feature_lengths)
            logits = None if head is None else head(encoded)
            recorder.phase = "token"
            rows = [torch.tensor(sequence, dtype=torch.int64, device=encoded.device) for sequence in tokens]
            targets = pad_sequence(rows, batch_first=True, padding_value=recognizer.tokenizer.blank_id)
            target_lengths = torch.tensor([len(sequence) for sequence in tokens], device=encoded.device)
            recognizer.decoder_loss(encoded, lengths, targets, target_lengths)
    outputs = {name: _module_output(name, paths[name], recorder, target_lengths) for name in paths}
    return Observation(
        outputs,
        feature_lengths,
        lengths,
        None if logits is None else logits.float().log_softmax(dim=2),
        recognizer.features.hop_seconds,
        recognizer.features.window_samples / recognizer.features.sample_rate,
    )


def has_ctc(recognizer: nn.Module) -> bool:
    """Whether a recognizer has a CTC output, which gives the times of characters."""
    return ctc_output(recognizer) is not None


def ctc_output(recognizer: nn.Module) -> CTCOutput | None:
    """Return the CTC output of a recognizer; None if it has none."""
    return next((child for child in recognizer.children() if isinstance(child, CTCOutput)), None)


def _hooks(recognizer: Recognizer, paths: Mapping[str, str], recorder: _Recorder) -> Iterator[Any]:
    for module in [recognizer.features, *recognizer.encoder.modules()]:

        def record_lengths(_: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:  # noqa: ANN401
            if recorder.phase == "frame":
                outputs = output if isinstance(output, tuple) else ()
                for value in (*arguments, *keywords.values(), *outputs):
                    if isinstance(value, Tensor) and value.dim() == 1 and value.dtype == torch.int64 and len(value):
                        recorder.lengths[int(value.max())] = value

        yield module.register_forward_hook(record_lengths, with_kwargs=True)
    modules = dict(recognizer.named_modules())
    for name, path in paths.items():
        module_path, _, kind = path.partition(":")

        def record_output(module: nn.Module, arguments: Any, output: Any, name: str = name, kind: str = kind) -> None:  # noqa: ANN401
            if recorder.units.setdefault(name, recorder.phase) == recorder.phase:
                recorder.calls.setdefault(name, []).append(_select_tensor(module, arguments, output, kind or "output"))

        yield modules[module_path].register_forward_hook(record_output)


def _select_tensor(module: nn.Module, arguments: Any, output: Any, kind: str) -> Tensor:  # noqa: ANN401
    if kind == "input":
        return arguments[0]
    if kind == "output":
        return output[0] if isinstance(output, tuple | list) else output
    if callable(weights := getattr(module, "weights", None)):
        return weights(*arguments)
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Tensor):
        return output[1]
    raise InputError(f"{type(module).__name__}: expected attention weights over frames, found none; name an attention")


def _module_output(name: str, path: str, recorder: _Recorder, target_lengths: Tensor) -> ModuleOutput:
    if name not in recorder.calls:
        raise InputError(f"{path} was not used while an utterance was recognized: name another module")
    calls, unit = recorder.calls[name], recorder.units[name]
    size = int(target_lengths.max()) + 1
    values = calls[0]
    if unit == "token" and len(calls) == size:
        values = torch.stack([call.flatten(1) for call in calls], dim=1)
    elif values.dim() == 4 and path.endswith(":weights"):  # (B, H, U, T), of all tokens at once
        values = values.transpose(1, 2).flatten(2)
    if len(calls) not in (1, size) or values.dim() != 3 or (unit == "token" and values.shape[1] != size):
        raise InputError(
            f"{path} gives {tuple(calls[0].shape)}, {len(calls)} times: expected a row for every frame, (B, T, D), or "
            "for every token, (B, U, D) or (B, D) again and again"
        )
    if unit == "token":
        return ModuleOutput(unit, values, target_lengths + 1)
    if values.shape[1] not in recorder.lengths:
        raise InputError(
            f"{path} gives {values.shape[1]} rows for an utterance, but the encoder works with "
            f"{', '.join(map(str, sorted(recorder.lengths)))} frames: expected one of these"
        )
    return ModuleOutput(unit, values, recorder.lengths[values.shape[1]])
