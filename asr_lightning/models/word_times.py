"""Words of recognized utterances, with times and confidence."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.words import FrameTimes, Pooling, with_texts, words_of
from asr_lightning.models.evaluation import evaluating
from asr_lightning.nn.recurrent import weights_cast_once

if TYPE_CHECKING:
    from asr_lightning.models.recognizer import Recognizer

MEASURED_FRAMES = 480  # feature frames that measure the subsampling of an encoder


@torch.no_grad()
def recognize_words(recognizer: "Recognizer", batch: Batch, pooling: Pooling = "product") -> list[list[Hypothesis]]:
    """Return the hypotheses of each of the B utterances with their texts, and words with times and confidence.

    This is a recognizer's `recognize_words`, in evaluation mode as `recognize`.

    Args:
        recognizer: In any mode, in which it is afterwards.
        batch: B utterances; all words of one of them lie within its audio.
        pooling: How the confidence of a word follows from the probabilities of its tokens.
    """
    recognizer.features.check_rate(batch.sample_rate)
    with evaluating(recognizer), weights_cast_once(recognizer.device):
        encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
        recognized = with_texts(recognizer.decode(encoded, lengths), recognizer.tokenizer)
        frames = recognizer.token_frames(encoded, lengths, [hypotheses[0] for hypotheses in recognized])
    times = recognizer.frame_times()
    for hypotheses, best_frames, samples in zip(recognized, frames, batch.audio_lengths.tolist(), strict=True):
        seconds = samples / batch.sample_rate
        for rank, hypothesis in enumerate(hypotheses):
            words = [
                replace(word, start=min(word.start, seconds), end=min(word.end, seconds)) for word in hypothesis.words
            ]
            timed = hypothesis if rank else replace(hypothesis, frames=best_frames)
            hypothesis.words = tuple(words) or words_of(timed, recognizer.tokenizer, times, seconds, pooling)
    return recognized


@torch.no_grad()
def measure_frame_times(recognizer: "Recognizer") -> FrameTimes:
    """Return the times of encoder frames, from the number of frames that an encoder makes of zeros."""
    features = recognizer.features
    zeros = torch.zeros(1, MEASURED_FRAMES, features.dimension, device=recognizer.device)
    frames = torch.full((1,), MEASURED_FRAMES, device=recognizer.device)
    with evaluating(recognizer):
        encoded, _ = recognizer.encoder(zeros.to(recognizer.dtype), frames)
    factor = round(MEASURED_FRAMES / encoded.shape[1])
    return FrameTimes(factor * features.hop_seconds, features.window_samples / features.sample_rate)
