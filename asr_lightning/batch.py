"""Utterances and batches.

The letters of shape comments, everywhere in this suite:

| letter | meaning                                             |
|--------|-----------------------------------------------------|
| B      | utterances, or texts, of a batch                    |
| S      | audio samples                                       |
| T      | frames of features, or of an encoder's output       |
| U      | tokens of a transcript                              |
| V      | tokens of the vocabulary                            |
| D      | dimensions of a vector                              |
| H      | attention heads                                     |
| C, F   | channels and frequencies of a spectrogram           |
| K      | hypotheses of a beam                                |
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Utterance:
    """A recording and its transcript.

    Attributes:
        id: Unique within its corpus.
        audio: (S,) float32 in [-1, 1].
        sample_rate: Samples per second.
        text: The transcript as the corpus gives it; empty where there is none.
        speaker: The speaker's name; empty where unknown.
        subset: The subset of the corpus, as `test-clean`.
    """

    id: str
    audio: Tensor
    sample_rate: int
    text: str = ""
    speaker: str = ""
    subset: str = ""


@dataclass(frozen=True)
class Batch:
    """Utterances padded with zeros to the length of the longest.

    Attributes:
        ids: B ids of utterances.
        audio: (B, S) float32.
        audio_lengths: (B,) int64, real samples of each row.
        sample_rate: Samples per second, the same for all rows.
        texts: B transcripts.
        speakers: B names of speakers.
        subsets: B names of subsets.
    """

    ids: list[str]
    audio: Tensor
    audio_lengths: Tensor
    sample_rate: int
    texts: list[str]
    speakers: list[str]
    subsets: list[str]

    @classmethod
    def collate(cls, utterances: Sequence[Utterance], sample_rate: int | None = None) -> "Batch":
        """Pad utterances into a batch.

        Args:
            utterances: An empty list needs `sample_rate`; the audio is then (0, 0).
            sample_rate: Samples per second of all utterances; by default that of the utterances.

        Raises:
            ValueError: No utterance and no sample rate, or several sample rates.
        """
        rates = {utterance.sample_rate for utterance in utterances} | ({sample_rate} if sample_rate else set())
        if len(rates) != 1:
            raise ValueError(f"a batch needs utterances of one sample rate, got {sorted(rates)}")
        audio = [utterance.audio for utterance in utterances]
        return cls(
            ids=[utterance.id for utterance in utterances],
            audio=pad_sequence(audio, batch_first=True) if audio else torch.zeros(0, 0),
            audio_lengths=torch.tensor([len(samples) for samples in audio], dtype=torch.int64),
            sample_rate=rates.pop(),
            texts=[utterance.text for utterance in utterances],
            speakers=[utterance.speaker for utterance in utterances],
            subsets=[utterance.subset for utterance in utterances],
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seconds(self) -> float:
        """Seconds of real audio, without padding. On a GPU, the host waits for it."""
        return float(self.audio_lengths.sum()) / self.sample_rate

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> "Batch":
        """Move the tensors to a device; by default without waiting for a GPU.

        Lightning passes `non_blocking` for tensors only; with a blocking copy every step would wait for the one before.
        """
        if non_blocking is None:
            non_blocking = torch.device(device).type != "cpu"
        return replace(
            self,
            audio=self.audio.to(device, non_blocking=non_blocking),
            audio_lengths=self.audio_lengths.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """Copy the tensors into page-locked memory; DataLoader calls it."""
        return replace(self, audio=self.audio.pin_memory(), audio_lengths=self.audio_lengths.pin_memory())


@dataclass(frozen=True)
class TextBatch:
    """Sentences for a language model.

    Attributes:
        ids: B ids, as `file:line`.
        texts: B sentences.
    """

    ids: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TextBatch":
        """Return the batch, which has no tensors; Lightning needs this method of a frozen dataclass."""
        return self


def is_memory_error(error: BaseException) -> bool:
    """Whether a computation failed because the memory of the GPU or of the computer was full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
