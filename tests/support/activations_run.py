"""A tiny recognizer whose activations are kept, started as one process or several."""

import json
import sys

import lightning
import torch
from torch.utils.data import DataLoader

from asr_lightning.callbacks.activations import Activations
from asr_lightning.models.checkpoints import build_recognizer
from tests.support.tones import TEXTS, attention_decoder, batch_of, loader, lstm_encoder, make_trainer, speller

MODULES = {"layer": "encoder.layers.0", "top": "encoder", "state": "decoder.cells.0"}


def recognizer() -> lightning.LightningModule:
    """Untrained, but the same in every process."""
    torch.manual_seed(3)
    return build_recognizer(
        attention_decoder(encoder=lstm_encoder(20), decoder=speller("AdditiveAttention"), ctc_weight=0.3)
    )


class Corpus(lightning.LightningDataModule):
    """Eight tunes, dealt out to the ranks in twos; the second rank also gets an empty batch."""

    def test_dataloader(self) -> dict[str, DataLoader]:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        batch = batch_of(TEXTS)
        pairs = [[2 * number, 2 * number + 1] for number in range(4)][rank::ranks]
        batches = [pick(batch, rows) for rows in pairs] + ([pick(batch, [])] if rank else [])
        return {"test-clean": loader(batches)}

    val_dataloader = test_dataloader

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()["test-clean"]


def pick(batch, rows):  # type: ignore[no-untyped-def]
    from asr_lightning.batch import Batch, Utterance

    return Batch.collate(
        [
            Utterance(
                batch.ids[row], batch.audio[row, : batch.audio_lengths[row]], batch.sample_rate, batch.texts[row],
                f"speaker{row % 3}", "test-clean",
            )
            for row in rows
        ],
        batch.sample_rate,
    )  # fmt: skip


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    trainer = make_trainer(
        arguments["folder"], devices=2, strategy="ddp", callbacks=[Activations(MODULES, **arguments["options"])]
    )
    trainer.test(recognizer(), datamodule=Corpus(), verbose=False)
