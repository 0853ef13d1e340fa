"""Greedy and beam search beside those of other toolkits, as ratios within one run.

    make demo peers && PYTHONPATH=runs/peers python benchmarks/searching.py [--transducer-beams 1 4]

The transducer's search and torchaudio's `RNNTBeamSearch` walk along the same frames with the same network, the demo's
student on its test-clean; torchaudio takes one utterance after the other, as it must, and its greedy search is a beam
of one. The searches of an attention decoder are our LAS and SpeechBrain's at the same shapes, each with an untrained
network of its own on random frames, and stopped after 13 tokens a second; neither ends a sentence before. Encoders are
not timed.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import peer_networks
import soundfile
import torch
import yaml
from peers import CHARACTERS
from timing import Row, in_turns, print_table
from torch import Tensor, nn
from torchaudio.models import RNNTBeamSearch

from asr_lightning.batch import Batch, Utterance
from asr_lightning.decoding.attention import AttentionSearch
from asr_lightning.decoding.transducer import TransducerSearch
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer

FRAMES_A_SECOND = 25
TOKENS_A_SECOND = 13


class AsTorchaudio(nn.Module):
    """Our prediction and joint networks as torchaudio's search calls them: its blank is the last token.

    Args:
        recognizer: Ours.

    Attributes:
        ours: (V,) our id of each of its tokens.
    """

    def __init__(self, recognizer: RNNTransducer) -> None:
        super().__init__()
        self.recognizer = recognizer
        tokens = torch.arange(len(recognizer.tokenizer), device=recognizer.device)
        blank = recognizer.tokenizer.blank_id
        self.ours = torch.cat([tokens[tokens != blank], tokens[blank : blank + 1]])

    def predict(
        self, targets: Tensor, lengths: Tensor, state: list[list[Tensor]] | None
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """Read tokens (N, 1)."""
        prediction = self.recognizer.prediction
        old_state = prediction.initial_state(len(targets), targets.device) if state is None else tuple(state[0])
        predicted, new_state = prediction(self.ours[targets], old_state)
        return predicted, lengths, [list(new_state)]

    def join(
        self, frames: Tensor, frame_lengths: Tensor, predicted: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N, 1, 1, V)."""
        logits = self.recognizer.joint(frames.unsqueeze(2), predicted.unsqueeze(1))
        return logits[..., self.ours], frame_lengths, lengths


def speech(folder: Path, count: int) -> Batch:
    """Return some utterances of a folder in LibriSpeech's layout."""
    paths = sorted(folder.rglob("*.flac"))[:count]
    if not paths:
        raise SystemExit(f"no *.flac below {folder}: `make demo` writes a corpus and trains what is searched here")
    recordings = [soundfile.read(path, dtype="float32") for path in paths]
    return Batch.collate(
        [
            Utterance(path.stem, torch.from_numpy(audio), rate, "")
            for path, (audio, rate) in zip(paths, recordings, strict=True)
        ]
    )


@torch.no_grad()
def transducer_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give a row for each beam."""
    recognizer = load_recognizer(options.checkpoint).to(options.device).eval()
    assert isinstance(recognizer, RNNTransducer)
    batch = speech(options.speech, options.utterances).to(options.device)
    encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
    frames = recognizer.encoder_projection(encoded)
    adapter = AsTorchaudio(recognizer)
    parts = frames, lengths, recognizer.prediction, recognizer.joint, recognizer.tokenizer
    for beam in options.transducer_beams:
        search = TransducerSearch(beam=beam)
        # Ranked by probability, as ours, not by probability and length.
        peer = RNNTBeamSearch(
            adapter,  # type: ignore[arg-type]
            blank=len(adapter.ours) - 1,
            hypo_sort_key=lambda hypothesis: hypothesis[3],
            step_max_tokens=search.max_symbols,
        )

        def theirs(beam: int = beam, peer: RNNTBeamSearch = peer) -> list[list[int]]:
            utterances = [row[:length].unsqueeze(0) for row, length in zip(frames, lengths.tolist(), strict=True)]
            return [adapter.ours[peer._search(utterance, None, beam)[0][0][1:]].tolist() for utterance in utterances]

        same = sum(
            list(hypotheses[0].tokens) == peer_tokens
            for hypotheses, peer_tokens in zip(search(*parts), theirs(), strict=True)
        )
        seconds = in_turns({"ours": lambda: search(*parts), "theirs": theirs}, options.turns, options.device)  # noqa: B023
        yield Row(
            f"search of a transducer, beam {beam}", f"{len(batch)} utterances, the same text of {same}",
            seconds["ours"], "torchaudio's RNNTBeamSearch, same network", seconds["theirs"], batch.seconds,
        )  # fmt: skip


@torch.no_grad()
def attention_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give a row for each beam."""
    from speechbrain.decoders import S2SRNNBeamSearcher, S2SRNNGreedySearcher

    content = yaml.safe_load(Path("experiments/demo/las.yaml").read_text())["model"]
    content["init_args"] |= {"augment": None, "tokenizer": CHARACTERS}
    device = options.device
    recognizer = build_recognizer(content).to(device).eval()
    network = peer_networks.SpeechBrainAttention().to(device).eval()
    eos = peer_networks.VOCABULARY - 1
    recognizer.decoder.output.bias[recognizer.tokenizer.eos_id] = network.output.w.bias[eos] = -1e4
    encoded = torch.randn(options.utterances, int(FRAMES_A_SECOND * options.seconds), 384, device=device)
    relative_lengths = torch.ones(options.utterances, device=device)
    lengths = torch.full((options.utterances,), encoded.shape[1], device=device)
    share = TOKENS_A_SECOND / FRAMES_A_SECOND
    shared = {"bos_index": 0, "eos_index": eos, "min_decode_ratio": 0.0, "max_decode_ratio": share}
    for beam in options.attention_beams:
        search = AttentionSearch(beam=beam, tokens_per_frame=share)
        layers = network.embedding, network.decoder, network.output
        if beam == 1:
            peer = S2SRNNGreedySearcher(*layers, **shared)
        else:
            peer = S2SRNNBeamSearcher(*layers, **shared, beam_size=beam, using_eos_threshold=False)
        times = in_turns(
            {
                "ours": lambda: search(  # noqa: B023
                    recognizer.decoder, recognizer.decoder.remember(encoded, lengths), lengths, recognizer.tokenizer
                ),
                "theirs": lambda: peer(encoded, relative_lengths),  # noqa: B023
            },
            options.turns,
            device,
        )
        yield Row(
            f"search of LAS, beam {beam}", f"{options.utterances} × {options.seconds:g} s", times["ours"],
            f"SpeechBrain's {type(peer).__name__}, same shapes", times["theirs"], options.utterances * options.seconds,
        )  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give all rows."""
    torch.manual_seed(1)
    yield from transducer_rows(options)
    try:
        yield from attention_rows(options)
    except ImportError as error:
        print(f"SpeechBrain: not here ({error}); `make peers` installs it")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="of a transducer",
        default=Path("runs/demo/weight_selection/selected/seed1/checkpoints/last.ckpt"),
    )
    parser.add_argument("--speech", type=Path, default=Path("data/spoken_small/test-clean"), help="that it hears")
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--transducer-beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--attention-beams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each utterance of the attention decoders")
    parser.add_argument("--turns", type=int, default=3, help="that are counted, after two that are not")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


if __name__ == "__main__":
    print_table(rows(make_parser().parse_args()))
