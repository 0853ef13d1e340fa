"""Makes what a BLSTM-HMM hybrid needs besides its network: states, alignments and graphs; and tunes its language model.

Example: python -m asr_lightning.tools.hybrid prepare --config experiments/demo/hybrid.yaml \
    --lexicon data/spoken/lexicon.txt --output runs/demo/hybrid/states
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import kaldifst
import numpy as np
import yaml
from tqdm import tqdm

from asr_lightning.batch import Batch
from asr_lightning.errors import InputError
from asr_lightning.files import replacing, replacing_files, write_atomically
from asr_lightning.hmm import gmm, tree
from asr_lightning.hmm.alignment import phone_runs
from asr_lightning.hmm.graph import decoding_graph, expand, phone_grammar, sentence
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.hmm.questions import phonetic_questions
from asr_lightning.hmm.search import GraphSearch
from asr_lightning.hmm.store import AlignmentStore, write_alignments
from asr_lightning.models.blstm_hmm import ALIGNMENTS, DECODING_GRAPH, PHONE_GRAMMAR, read_graph
from asr_lightning.scoring.error_rates import ErrorRates
from asr_lightning.text.arpa import read_arpa
from asr_lightning.text.graphemes_to_phones import JointSequenceModel
from asr_lightning.text.lexicon import Lexicon, capitals, cmudict, complete, read_lexicon
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import kneser_ney
from asr_lightning.tools.arguments import above_zero, whole_number
from asr_lightning.tools.ngram import find_texts, read_sentences
from asr_lightning.tools.state_alignment import (
    Aligned,
    Decodable,
    Decodables,
    align_batches,
    likelihoods,
    of_network,
    prepare_hybrid,
)
from asr_lightning.tools.subsets import development_subsets, every, subsets_of, training_texts

SHOWN = 10  # utterances that could not be aligned


def prepare(options: argparse.Namespace) -> str:
    """Train Gaussian mixtures, tie states, align everything, make the graphs; return what to tell the user."""
    train, validation = subsets_of(options.config)
    transcripts = list(training_texts(options.config))
    ngram = read_or_estimate(options, transcripts)
    lexicon, report = make_lexicon(options, transcripts, ngram)
    write_atomically(
        options.output / "left_out.txt", "".join(f"{word} {count}\n" for word, count in report.most_common())
    )
    said = [f"{len(lexicon)} words in the lexicon; {len(report)} of the text are in none and left out (left_out.txt)."]
    mixtures = train_mixtures(options, HiddenMarkovModel.monophone(lexicon), train)
    tied = tie_states(options, mixtures, train)
    said.append(f"{tied.pdfs} tied states.")
    aligned = align_batches(
        mixtures.model, every(options.config, [*train, *validation], "alignment"), of_mixtures(mixtures)
    )
    said += finish(options.output, mixtures.model, tied, aligned)
    with replacing(options.output / DECODING_GRAPH) as half:
        decoding_graph(tied, ngram).write(str(half))
    return "\n".join(said)


def read_or_estimate(options: argparse.Namespace, transcripts: Sequence[str]) -> NGram:
    """Return the language model: an ARPA file, or one of texts, or of the transcripts."""
    if options.arpa is not None:
        return read_arpa(options.arpa)
    texts = read_sentences(find_texts(options.text), options.skip_columns) if options.text else transcripts
    return kneser_ney([capitals(text).split() for text in texts], options.order)


def make_lexicon(options: argparse.Namespace, transcripts: Sequence[str], ngram: NGram) -> tuple[Lexicon, Counter[str]]:
    """Return the lexicon with what a trained model says of words that it lacks, and how often others come."""
    lexicon = cmudict() if options.lexicon == "cmudict" else read_lexicon(options.lexicon)
    wanted = [*(word for text in transcripts for word in capitals(text).split()), *ngram.tokens]
    wanted = [word for word in wanted if not word.startswith("<")]
    unknown = [word for word in wanted if word not in lexicon]
    g2p = JointSequenceModel.train(lexicon) if options.unknown_words == "guess" and unknown else None
    guessed, left_out = complete(lexicon, unknown, g2p)
    return Lexicon({**lexicon.pronunciations, **guessed.pronunciations}), left_out


def train_mixtures(options: argparse.Namespace, model: HiddenMarkovModel, train: Sequence[str]) -> gmm.GaussianMixtures:
    """Train Gaussian mixtures of monophones on the first minutes of the training data."""
    examples: list[gmm.Example] = []
    seconds = 0.0
    for id, words, features in utterances(every(options.config, train, "features")):
        if all(word in model.word_ids for word in words):
            examples.append(gmm.Example(id, features, expand(model, sentence(model, words))))
            seconds += len(features) * gmm.HOP_SECONDS
        if seconds > 60 * options.gmm_minutes:
            break
    rows = ["pass,log_likelihood_per_frame,gaussians,not_aligned\n"]
    with tqdm(total=options.passes, desc="Gaussian mixtures", unit="pass", disable=not sys.stderr.isatty()) as bar:
        for one, trained in gmm.train(model, examples, options.passes, options.gaussians, options.seed):
            mixtures = trained
            rows.append(f"{one.number},{one.log_likelihood:.4f},{one.gaussians},{one.failed}\n")
            bar.update()
            bar.set_postfix(log_likelihood=f"{one.log_likelihood:.2f}")
    write_atomically(options.output / "mixtures.csv", "".join(rows))
    return mixtures


def utterances(batches: Iterable[Batch]) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Give the name, the words and the features (T, D) of every utterance, as Gaussian mixtures read them."""
    features = gmm.CepstralFeatures()
    for batch in batches:
        for id, text, audio, length in zip(batch.ids, batch.texts, batch.audio, batch.audio_lengths, strict=True):
            yield id, capitals(text).split(), features(audio[:length])


def of_mixtures(mixtures: gmm.GaussianMixtures) -> Decodables:
    """Return what gives the log likelihoods of Gaussian mixtures."""

    def decodables(batch: Batch) -> list[Decodable]:
        return [Decodable(mixtures.decodable(features), len(features)) for _, _, features in utterances([batch])]

    return decodables


def tie_states(options: argparse.Namespace, mixtures: gmm.GaussianMixtures, train: Sequence[str]) -> HiddenMarkovModel:
    """Return the model with triphones tied, by statistics of the training data."""
    model = mixtures.model

    def aligned() -> Iterator[tuple[np.ndarray, Sequence[int]]]:
        for batch in every(options.config, train, "triphones"):
            found = align_batches(model, [batch], of_mixtures(mixtures))
            for one, (_, _, features) in zip(found, utterances([batch]), strict=True):
                if not one.problem:
                    yield features, one.transition_ids

    return tree.tie(
        model, tree.accumulate(model, aligned()), options.tied_states, phonetic_questions(model.phones),
        options.least_frames,
    )  # fmt: skip


def finish(output: Path, before: HiddenMarkovModel, tied: HiddenMarkovModel, aligned: Iterable[Aligned]) -> list[str]:
    """Write alignments in the states of a tied model, the phone grammar that follows, and the model with its counts."""
    problems: list[str] = []

    def converted() -> Iterator[tuple[str, Iterable[int]]]:
        for one in aligned:
            if one.problem:
                problems.append(f"{one.id}: {one.problem}")
            else:
                yield one.id, one.transition_ids if before is tied else tree.convert(before, tied, one.transition_ids)

    write_alignments(output / ALIGNMENTS, converted())
    store = AlignmentStore(output / ALIGNMENTS)
    counts = np.zeros(len(tied.pdf_of))
    for _, ids in store:
        counts += np.bincount(ids, minlength=len(counts))
    tied = tied.with_counts(counts)
    tied.write(output)
    spoken = phone_grammar([tied.phone_ids[phone] for *_, phone in phone_runs(tied, ids)] for _, ids in store)
    kaldifst.arcsort(spoken, sort_type="ilabel")
    with replacing(output / PHONE_GRAMMAR) as half:
        spoken.write(str(half))
    more = len(problems) - SHOWN
    return [
        f"{len(store)} utterances aligned, {len(problems)} not.",
        *problems[:SHOWN],
        *([f"... and {more} more"] if more > 0 else []),
    ]


def realign(options: argparse.Namespace) -> str:
    """Align everything by a network, with the states that it knows; return what to tell the user."""
    recognizer = prepare_hybrid(options.checkpoint, options.device, options.config)
    train, validation = subsets_of(options.config)
    model = recognizer.states
    batches = every(options.config, [*train, *validation], "alignment")
    said = finish(options.output, model, model, align_batches(model, batches, of_network(recognizer)))
    with replacing(options.output / DECODING_GRAPH) as half:
        read_graph(recognizer.folder / DECODING_GRAPH).write(str(half))
    return "\n".join(said)


def in_one_go(run: Callable[[argparse.Namespace], str]) -> Callable[[argparse.Namespace], str]:
    """Let a command write all its files or none, since they fit each other only."""

    def run_whole(options: argparse.Namespace) -> str:
        with replacing_files(options.output) as folder:
            said = run(argparse.Namespace(**{**vars(options), "output": folder}))
        return f"{said}\nWritten to {options.output.absolute()}"

    return run_whole


def tune(options: argparse.Namespace) -> str:
    """Find the acoustic scale with the fewest word errors; return a table."""
    subsets = development_subsets(options.config, options.subsets)
    recognizer = prepare_hybrid(options.checkpoint, options.device, options.config)
    graph = read_graph(recognizer.folder / DECODING_GRAPH)
    rates = {scale: ErrorRates() for scale in options.scales}
    for batch in every(options.config, subsets, "search"):
        for text, scores in zip(batch.texts, likelihoods(recognizer, batch), strict=True):
            for scale, rate in rates.items():
                search = GraphSearch(scale, recognizer.search.beam, recognizer.search.max_active)
                heard = " ".join(search(scores, recognizer.states, graph)[0].words)
                rate.update(*([recognizer.tokenizer.fold(one)] for one in (text, heard)))
    if not all(rate.sentence_total for rate in rates.values()):
        raise InputError(f"{', '.join(subsets)}: expected utterances to choose a scale by, but none could be read")
    found = {scale: float(rate.compute()["wer"]) for scale, rate in rates.items()}
    best = min(found, key=lambda scale: found[scale])
    part = {
        "class_path": "asr_lightning.hmm.search.GraphSearch",
        "init_args": {**vars(recognizer.search), "acoustic_scale": best},
    }
    write_atomically(options.output, yaml.safe_dump({"model": {"init_args": {"search": part}}}))
    of = next(iter(rates.values()))
    lines = [f"acoustic scale {scale:g} (language model weight {1 / scale:.1f}): WER {100 * rate:.2f} %"
             for scale, rate in found.items()]  # fmt: skip
    lines.append(f"Of {int(of.sentence_total):,} utterances, {int(of.word_total):,} words.")
    return "\n".join([*lines, f"The best, {best:g}, is in {options.output.absolute()}: give it as a second --config"])


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m asr_lightning.tools.hybrid", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, required=True, help="an experiment; its `data` is the corpus")
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument(
        "--checkpoint", type=Path, required=True,
        help="of a BLSTMHMM that `lightning fit` has trained; a `model` in the experiment is of this network",
    )  # fmt: skip
    network.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU where there is one"
    )
    one = commands.add_parser(
        "prepare", parents=[shared], help="states, alignments and graphs from Gaussian mixtures",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    one.add_argument(
        "--lexicon", required=True, help="a file in the form of CMUdict, LibriSpeech, Kaldi or MFA; or `cmudict`"
    )
    one.add_argument("--unknown-words", choices=("guess", "leave"), default="guess", help="say them as a model that is "
                     "trained on the lexicon does, or leave utterances with them out")  # fmt: skip
    one.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    one.add_argument(
        "--arpa", type=Path, help="language model of words (estimated from --text, or else the transcripts)"
    )
    one.add_argument("--text", nargs="+", metavar="FILE", help="sentences that the language model is estimated from")
    one.add_argument(
        "--skip-columns", type=whole_number(0), default=0, metavar="N",
        help="words at the start of their lines that are no text",
    )  # fmt: skip
    one.add_argument("--order", type=above_zero(int), default=3, help="of the language model that is estimated")
    one.add_argument("--passes", type=above_zero(int), default=40, help="over the data of the Gaussian mixtures")
    one.add_argument("--gaussians", type=above_zero(int), default=1000, help="in all mixtures together")
    one.add_argument(
        "--gmm-minutes", type=above_zero(float), default=60.0,
        help="of audio that the mixtures learn from, held in memory",
    )  # fmt: skip
    one.add_argument("--tied-states", type=above_zero(int), default=500, help="at most, but three a phone")
    one.add_argument("--least-frames", type=above_zero(float), default=100.0, help="that a tied state needs")
    one.add_argument("--seed", type=int, default=1, help="of the first alignments")
    one.set_defaults(run=in_one_go(prepare))
    one = commands.add_parser("realign", parents=[shared, network], help="the same from a network's alignments")
    one.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    one.set_defaults(run=in_one_go(realign))
    one = commands.add_parser("tune", parents=[shared, network], help="find the best weight of the language model")
    one.add_argument(
        "--subsets",
        nargs="+",
        help="development sets (default: those that the experiment validates on; never what it tests on)",
    )
    one.add_argument(
        "--scales", nargs="+", type=above_zero(float), default=[0.05, 0.07, 0.1, 0.14, 0.2, 0.3],
        help="of log likelihoods (default: 0.05 0.07 0.1 0.14 0.2 0.3)",
    )  # fmt: skip
    one.add_argument("--output", type=Path, required=True, metavar="YAML", help="where the best one goes")
    one.set_defaults(run=tune)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        print(options.run(options))
    except (InputError, OSError) as error:  # a full disk, or an output that cannot be written
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
