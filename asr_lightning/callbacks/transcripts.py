"""Write error rates and transcripts of every epoch."""

import csv
import io
import json
import math
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jiwer
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import printable
from asr_lightning.files import append_to, name_of_run, write_atomically
from asr_lightning.scoring import COUNTS, RATES
from asr_lightning.text.timed_words import as_ctm

COLUMNS = ("run", "seed", "epoch", "subset", *RATES, *COUNTS)
EXAMPLE_LENGTH = 100  # characters of a printed transcript

Line = dict[str, str]  # one line of error_rates.csv by column
Transcript = dict[str, Any]  # one line of a transcript file


class Transcripts(Callback):
    """Writes error rates and transcripts into the run folder, and shows some of them.

    The run folder, `trainer.default_root_dir`, gets

    * `error_rates.csv`: one line per subset and validation, with the columns `run,seed,epoch,subset`, the rates of
      `asr_lightning.scoring.error_rates` as fractions, and the `utterances` and `words` that they are of. Epoch 1 is
      the first finished epoch; a validation inside an epoch is replaced by the next. Epoch 0 is there where the same
      trainer validated before it was fitted. Training from the start replaces the file, resumed training replaces the
      lines of the epochs that it repeats.
    * `test_error_rates.csv`: the same for `lightning test`, where the epoch is that of the checkpoint. Testing an
      epoch again replaces its lines.
    * `transcripts/<stage>-epoch<N>-<subset>.jsonl`: one utterance a line, sorted by id, from all ranks; `stage` is
      `validation` or `test`.
      A recognizer that searches with a beam adds `n_best`: texts with the scores that they are ranked by.
    * `transcripts/predict-<subset>.jsonl`: the same for `lightning predict`, without what needs a reference, in the
      order of recognition and rank by rank, since any amount of speech may be predicted. The subset is the utterances'
      own; those without one are in `transcripts/predict.jsonl`. Each line has `words` with `start` and `end` in seconds
      and a `confidence`; `transcripts/predict-<subset>.ctm` has the same for NIST's tools.

    Validating alone (`lightning validate`) only prints. The rates are those that the recognizer logged as
    `<subset>/wer`, `<subset>/cer` and so on, where the subset is the name of a dataloader; dataloaders without
    names are one subset, `val` or `test`.
    """

    def __init__(self, run: str | None = None, keep: Literal["last", "all"] = "last", examples: int = 2) -> None:
        """Name the experiment.

        Args:
            run: Name of the experiment, the same for all its seeds; by default the name of the run folder, or of its
                parent where the folder is called `seed<k>`.
            keep: Whether transcripts of earlier epochs stay.
            examples: Utterances of each subset that are printed after each validation.
        """
        if keep not in ("last", "all"):
            raise ValueError(f"keep must be 'last' or 'all', got {keep!r}")
        self.run = run
        self.keep = keep
        self.examples = examples
        self._transcripts: dict[str, list[Transcript]] = {}  # by subset, of this rank
        self._before_training: list[Line] = []
        self._epoch_of_checkpoint: int | None = None
        self._training_began = time.monotonic(), 0  # and the epochs before it

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._transcripts = {name: [] for name in names_of_subsets(trainer.val_dataloaders, "val")}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last test."""
        self._transcripts = {name: [] for name in names_of_subsets(trainer.test_dataloaders, "test")}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        if not trainer.sanity_checking:
            scored = replace(batch, texts=outputs.get("references", batch.texts))  # as the recognizer has scored them
            self._collect(scored, outputs["hypotheses"], dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files of an interrupted prediction."""
        if trainer.is_global_zero:
            for path in (Path(trainer.default_root_dir) / "transcripts").glob(".predict*.rank*"):
                path.unlink()
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch into this rank's files."""
        folder = Path(trainer.default_root_dir) / "transcripts"
        folder.mkdir(parents=True, exist_ok=True)
        lines: dict[str, list[str]] = {}
        for subset, name, speaker, candidates in zip(
            batch.subsets, batch.ids, batch.speakers, outputs["hypotheses"], strict=True
        ):
            words = [word.as_json() for word in candidates[0].words]
            line = {
                "id": name,
                "speaker": speaker,
                "hypothesis": candidates[0].text,
                "words": words,
                **n_best(candidates),
            }
            stem = f".predict-{subset}" if subset else ".predict"
            lines.setdefault(f"{stem}.jsonl", []).append(as_json_line(line))
            if words:
                lines.setdefault(f"{stem}.ctm", []).append(as_ctm(name, candidates[0].words))
        for name, of_subset in lines.items():
            with append_to(folder / f"{name}.rank{trainer.global_rank:05}") as file:
                file.writelines(of_subset)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the files of the ranks, and print their paths."""
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        parts: dict[Path, list[Path]] = {}
        for part in sorted((Path(trainer.default_root_dir) / "transcripts").glob(".predict*.rank*")):
            parts.setdefault(part.with_name(part.stem.removeprefix(".")), []).append(part)
        for path, (first, *others) in parts.items():
            with append_to(first) as target:
                for other in others:
                    with other.open("rb") as source:
                        shutil.copyfileobj(source, target.buffer)
                    other.unlink()
            os.replace(first, path)
            pl_module.print(f"Written to {path.absolute()}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print: not earlier, since the recognizer logs its rates after the callbacks' epoch end."""
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == TrainerFn.FITTING
        epoch = trainer.current_epoch + 1 if fitting else 0
        lines = self._lines(trainer, epoch)
        self._gather(trainer)
        self._print(pl_module, self._progress(trainer, epoch) if fitting else "validation", lines)
        if not fitting:
            self._before_training = lines
        elif trainer.is_global_zero:
            self._write(trainer, "validation", epoch, lines)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print."""
        epoch = trainer.current_epoch if self._epoch_of_checkpoint is None else self._epoch_of_checkpoint
        self._epoch_of_checkpoint = None
        lines = self._lines(trainer, epoch)
        self._gather(trainer)
        self._print(pl_module, f"test of epoch {epoch}", lines)
        if trainer.is_global_zero:
            self._write(trainer, "test", epoch, lines)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read which epoch is tested; a trainer that tests does not restore it."""
        if trainer.state.fn == TrainerFn.TESTING and "loops" in checkpoint:
            # epochs begun: a checkpoint is saved before its own epoch counts as finished
            self._epoch_of_checkpoint = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["started"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the files of an earlier training in this folder, unless it goes on."""
        self._training_began = time.monotonic(), trainer.current_epoch
        lines, self._before_training = self._before_training, []
        resumed = trainer.global_step > 0
        if resumed or not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        (root / "error_rates.csv").unlink(missing_ok=True)
        for path in (root / "transcripts").glob("validation-epoch*.jsonl"):
            path.unlink()
        if lines:
            write_atomically(root / "error_rates.csv", rates_as_csv(lines))

    def _collect(self, batch: Batch, hypotheses: list[list[Hypothesis]], dataloader_idx: int) -> None:
        subsets = list(self._transcripts)
        self._transcripts[subsets[min(dataloader_idx, len(subsets) - 1)]] += transcripts(batch, hypotheses)

    def _lines(self, trainer: Trainer, epoch: int) -> list[Line]:
        """One line per subset, from what the recognizer logged."""
        run, seed = name_of_run(Path(trainer.default_root_dir))
        seed = os.environ.get("PL_GLOBAL_SEED", seed)
        lines = []
        for subset in self._transcripts:
            logged_here = {
                name: float(trainer.callback_metrics[f"{subset}/{name}"])
                for name in (*RATES, *COUNTS)
                if f"{subset}/{name}" in trainer.callback_metrics
            }
            missing = [name for name in (*RATES, *COUNTS) if name not in logged_here]
            if missing:
                logged = sorted(trainer.callback_metrics)
                raise ValueError(f"expected the recognizer to log {subset}/{missing[0]}, but it logged {logged}")
            line = {"run": self.run or run, "seed": seed, "epoch": str(epoch), "subset": subset}
            line |= {name: f"{logged_here[name]:.6f}" for name in RATES}
            lines.append(line | {name: f"{logged_here[name]:.0f}" for name in COUNTS})
        return lines

    def _progress(self, trainer: Trainer, epoch: int) -> str:
        """Return `rnnt seed 1, epoch 2 of 6, 4 min left`, where the time is known."""
        name, seed = name_of_run(Path(trainer.default_root_dir))
        title = f"{self.run or name}{f' seed {seed}' if seed else ''}, epoch {epoch}"
        if not trainer.max_epochs or trainer.max_epochs < epoch:
            return title
        began, epochs_before = self._training_began
        left = (time.monotonic() - began) / (epoch - epochs_before) * (trainer.max_epochs - epoch)  # seconds
        return f"{title} of {trainer.max_epochs}" + (f", {readable_time(left)} left" if left > 0 else "")

    def _gather(self, trainer: Trainer) -> None:
        """Bring the transcripts of all ranks to rank zero; all ranks must come here."""
        parts: list[Any] = [self._transcripts]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            target = parts if trainer.is_global_zero else None
            torch.distributed.gather_object(self._transcripts, target)
            if target is None:
                return
        for subset in self._transcripts:
            # by id: a sampler may have given an utterance to two ranks, to make their shares equal
            by_id = {transcript["id"]: transcript for part in parts for transcript in part[subset]}
            self._transcripts[subset] = [by_id[name] for name in sorted(by_id)]

    def _print(self, pl_module: LightningModule, title: str, lines: list[Line]) -> None:
        for line in lines:
            rates = "  ".join(f"{rate.upper()} {float(line[rate]):7.2%}" for rate in RATES[:3])
            counts = f"{int(line['utterances']):,} utterances, {int(line['words']):,} words"
            pl_module.print(f"{title}  {printable(line['subset'])}  {rates}  of {counts}")
            for transcript in self._transcripts[line["subset"]][: self.examples]:
                reference, hypothesis = shorten(transcript["reference"]), shorten(transcript["hypothesis"])
                pl_module.print(f"    {reference or '(nothing)'}  →  {hypothesis or '(nothing)'}")

    def _write(self, trainer: Trainer, stage: Literal["validation", "test"], epoch: int, lines: list[Line]) -> None:
        root = Path(trainer.default_root_dir)
        path = root / ("test_error_rates.csv" if stage == "test" else "error_rates.csv")
        old = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.exists() else []
        if stage == "test":
            kept = [line for line in old if int(line["epoch"]) != epoch]
        else:  # without epochs that a resumed training repeats or has not reached yet
            kept = [line for line in old if int(line["epoch"]) < epoch]
        write_atomically(path, rates_as_csv(kept + lines))
        folder = root / "transcripts"
        for subset, entries in self._transcripts.items():
            write_atomically(folder / f"{stage}-epoch{epoch}-{subset}.jsonl", "".join(map(as_json_line, entries)))
        for path in folder.glob(f"{stage}-epoch*.jsonl"):
            written = re.match(rf"{stage}-epoch(\d+)-", path.name)
            other = int(written[1]) if written else epoch
            if (self.keep == "last" and other != epoch) or (stage == "validation" and other > epoch):
                path.unlink()


def readable_time(seconds: float) -> str:
    """Return `40 s`, `4 min` or `3 h 20 min`, rounded up."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def names_of_subsets(dataloaders: Any, pooled: str) -> list[str]:  # whatever a data module returns
    """Return the names of dataloaders, or their common name where they have none."""
    return list(dataloaders) if isinstance(dataloaders, dict) else [pooled]


def n_best(hypotheses: list[Hypothesis]) -> Transcript:
    """Return all hypotheses with the scores that rank them, as `n_best`; nothing where there is only one."""
    if len(hypotheses) == 1:
        return {}
    return {
        "n_best": [
            {"text": hypothesis.text, "score": hypothesis.score, **hypothesis.parts} for hypothesis in hypotheses
        ]
    }


def transcripts(batch: Batch, hypotheses: list[list[Hypothesis]]) -> list[Transcript]:
    """Return reference, hypothesis and word errors of each utterance.

    Args:
        batch: B utterances, maybe none.
        hypotheses: Those of each of the B, the best first.

    Returns:
        For each utterance its `id`, `speaker`, `reference`, `hypothesis`, `word_errors` and `words` (of the reference);
        and `n_best` where there are several hypotheses.
    """
    lines = []
    for name, speaker, text, candidates in zip(batch.ids, batch.speakers, batch.texts, hypotheses, strict=True):
        hypothesis = candidates[0].text
        result = jiwer.process_words(" ".join(text.split()), " ".join(hypothesis.split()))
        lines.append(
            {
                "id": name,
                "speaker": speaker,
                "reference": text,
                "hypothesis": hypothesis,
                "word_errors": result.substitutions + result.deletions + result.insertions,
                "words": result.hits + result.substitutions + result.deletions,
                **n_best(candidates),
            }
        )
    return lines


def as_json_line(transcript: Transcript) -> str:
    """Return a transcript as a line of JSON, readable in any script, that every reader takes for one line."""
    text = json.dumps(transcript, ensure_ascii=False)
    # Unicode's own line ends, which `str.splitlines` obeys, and halves of characters, which UTF-8 cannot write
    return re.sub("[\x85\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def rates_as_csv(lines: list[Line]) -> str:
    """Return the text of an `error_rates.csv`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: printable(value) for name, value in line.items()} for line in lines)
    return file.getvalue()


def shorten(text: str) -> str:
    """Cut a long transcript for the terminal."""
    return printable(text if len(text) <= EXAMPLE_LENGTH else text[: EXAMPLE_LENGTH - 1] + "…")
