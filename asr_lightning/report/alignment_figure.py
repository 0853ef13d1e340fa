"""Pictures of how a recognizer moves along an utterance: attention weights, and posteriors with what was emitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr_lightning.files import replacing
from asr_lightning.report.figures import COLORS

MOST = 8  # tokens whose posteriors are drawn beside the blank
WIDTH = 11.0  # inches, at 100 dots per inch


@dataclass(frozen=True)
class UtteranceAlignment:
    """What is known of one utterance.

    Attributes:
        utterance: Name.
        title: What was recognized.
        tokens: U names of what was recognized.
        seconds: Duration.
        attention: (U + 1, T) for every name of an attention; the last row is for the end of the sentence.
        posteriors: (T, V) probabilities of the CTC output or, of a transducer, of passing each frame with each token.
        vocabulary: V names, if there are posteriors.
        onsets: U frames at which tokens were emitted, if known.
        blank_id: The blank's column.
    """

    utterance: str
    title: str
    tokens: Sequence[str]
    seconds: float
    attention: dict[str, np.ndarray]
    posteriors: np.ndarray | None
    vocabulary: Sequence[str]
    onsets: Sequence[int]
    blank_id: int


def display_token(token: str) -> str:
    """Return a token as it is drawn: matplotlib leaves names that begin with `_` out of legends."""
    return token.replace("_", "␣")


def plot_alignment(utterance: UtteranceAlignment, path: Path) -> None:
    """Draw attention weights, tokens over seconds, and below them posteriors with the emitted tokens; write a PNG."""
    heights = [max(3.0, min(9.0, 0.16 * len(weights))) for weights in utterance.attention.values()]
    heights += [3.0] if utterance.posteriors is not None else []
    figure = Figure((WIDTH, sum(heights) + 0.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (name, weights) in zip(panels, utterance.attention.items(), strict=False):
        panel.imshow(
            weights, aspect="auto", origin="upper", cmap="Blues", vmin=0.0, interpolation="nearest",
            extent=(0.0, utterance.seconds, len(weights) - 0.5, -0.5),
        )  # fmt: skip
        panel.set_yticks(
            range(len(weights)), [*map(display_token, utterance.tokens), "end"][: len(weights)], fontsize=8
        )
        panel.set_title(name, fontsize=11)
    if utterance.posteriors is not None:
        panel, times = (
            panels[-1],
            (np.arange(len(utterance.posteriors)) + 0.5) * utterance.seconds / len(utterance.posteriors),
        )
        panel.plot(times, utterance.posteriors[:, utterance.blank_id], color="0.6", linewidth=1.0, label="blank")
        without_blank = np.delete(utterance.posteriors.max(axis=0), utterance.blank_id)
        columns = np.delete(np.arange(utterance.posteriors.shape[1]), utterance.blank_id)
        for number, column in enumerate(columns[np.argsort(-without_blank)[:MOST]]):
            panel.plot(times, utterance.posteriors[:, column], color=COLORS[number % len(COLORS)], linewidth=1.2,
                       label=display_token(utterance.vocabulary[column]))  # fmt: skip
        for onset, token in zip(utterance.onsets, utterance.tokens, strict=False):
            panel.annotate(display_token(token), (times[onset], 1.03), fontsize=9, ha="center", annotation_clip=False)
        panel.set_ylim(0.0, 1.12)
        panel.set_ylabel("probability", fontsize=10)
        panel.legend(frameon=False, fontsize=8, ncols=MOST + 1, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    panels[-1].set_xlabel("seconds", fontsize=11)
    figure.suptitle(f"{utterance.utterance}: {utterance.title}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as half:
        figure.savefig(half, format="png")
