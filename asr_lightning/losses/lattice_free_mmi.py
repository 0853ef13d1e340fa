"""Lattice-free MMI: the forward-backward algorithm over graphs of HMM states, and the loss made of two of them.

[Povey et al. 2016, "Purely sequence-trained neural networks for ASR based on lattice-free MMI"; Hadian et al. 2018,
"End-to-end speech recognition using lattice-free MMI"].

The letters are those of `graphs.py`, with P pdfs.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from asr_lightning.losses.graphs import GraphBatch, product, summing
from asr_lightning.nn.sequences import real_frames

FLOOR = 1e-290  # smaller probabilities, relative to all paths up to a frame, count as zero; its reciprocal is finite


def lattice_free_mmi_loss(scores: Tensor, lengths: Tensor, numerators: GraphBatch, denominator: GraphBatch) -> Tensor:
    """Return -(log p(numerator) - log p(denominator)) of each utterance.

    The denominator has no leak between all its states, which Povey et al. add.

    Args:
        scores: (B, T, P) outputs of the network, in any floating type; they need not be normalized.
        lengths: (B,) real frames.
        numerators: Graphs of the transcripts, usually one per utterance.
        denominator: Graphs of all word sequences, usually one for all utterances.

    Returns:
        (B,) losses, float64 for float64 scores, otherwise float32; infinite, with a gradient of zero, where a numerator
        or denominator has no path, as where an utterance has fewer frames than its numerator needs.

    Raises:
        ValueError: As `total_log_probability`.
    """
    transcript = total_log_probability(scores, lengths, numerators)
    all_paths = total_log_probability(scores, lengths, denominator)
    usable = transcript.isfinite() & all_paths.isfinite()
    losses = torch.where(usable, all_paths - transcript, torch.full_like(transcript, torch.inf))
    return losses.to(torch.promote_types(scores.dtype, torch.float32))


def total_log_probability(scores: Tensor, lengths: Tensor, graphs: GraphBatch) -> Tensor:
    """Return the log of the summed weight of all paths of each utterance's length, from an initial to a final state.

    A path weighs the product of its initial, arc and final weights and, per frame, of e^score of the arc's pdf; the
    gradient is each pdf's posterior probability. The recursions are in float64 and rescaled at every frame, so that
    only ratios count: paths with less than `FLOOR` of the weight of all paths up to a frame are lost, also one that
    would be the best in the end. Left-to-right graphs of 60 to 300 states, 400 frames and
    random scores lost nothing at a standard deviation of 5, and the longest ones lost their best paths at 10.

    Args:
        scores: (B, T, P) logs, in any floating type; what lies beyond the lengths is ignored.
        lengths: (B,) real frames.
        graphs: One graph for all utterances, or B; moved to the scores' device if they are elsewhere.

    Returns:
        (B,) float64; -inf, with a gradient of zero, where no path has this length or all are lost, also where scores
        are NaN.

    Raises:
        ValueError: The number of graphs, the pdfs or the lengths do not fit the scores.
    """
    batch, frames, pdfs = scores.shape
    highest = int(graphs.node_pdfs.max()) if len(graphs.node_pdfs) else -1
    ends = lengths.tolist()  # waits once for a GPU
    if len(graphs) not in (1, batch) or highest >= pdfs or (batch and max(ends) > frames):
        raise ValueError(
            f"{len(graphs)} graphs with pdfs up to {highest} and lengths {ends} do not fit scores of "
            f"(B, T, P) = {tuple(scores.shape)}: one graph or B, pdfs below P, lengths up to T"
        )
    if not batch:
        return scores.sum(dim=(1, 2)).double()
    return _Total.apply(scores, lengths, set(ends), graphs.to(scores.device))


class _Total(Function):
    """The recursions; of the forward one, every ⌈√T⌉-th frame is kept, the frames between are computed twice."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        scores: Tensor,
        lengths: Tensor,
        ends: set[int],
        graphs: GraphBatch,
    ) -> Tensor:
        emissions = _Emissions(scores, lengths, graphs)
        groups = (len(graphs), len(scores) // len(graphs))  # (G, K)
        alpha = graphs.initial.expand(-1, groups[1]).contiguous()  # (S, K)
        ended = torch.zeros(groups, dtype=torch.float64, device=scores.device)
        every = math.isqrt(max(ends)) + 1
        alphas = []
        arrived, nodes = alpha.new_empty(2, len(graphs.node_states), groups[1])
        for frame in range(max(ends) + 1):
            if frame in ends:
                weights = product(graphs.members, alpha * graphs.final)
                ended = torch.where((lengths == frame).view(groups), weights, ended)
            if frame == max(ends):
                break
            if frame % every == 0:
                alphas.append(alpha)
            alpha = emissions.take(alpha, frame, arrived, nodes)
            sums = product(graphs.members, alpha)  # (G, K)
            alpha *= torch.where(sums > FLOOR, 1 / sums, 0.0).index_select(0, graphs.state_graphs)
            emissions.rescale(frame, sums.reshape(-1))
        ended = ended.view(-1)
        possible = ended > FLOOR
        valid = real_frames(lengths, scores.shape[1])
        totals = emissions.normalizers.masked_fill(~valid, 0.0).sum(dim=1) + ended.log()
        ctx.save_for_backward(scores, lengths, emissions.normalizers, torch.where(possible, 1 / ended, 0.0))
        ctx.graphs, ctx.kept, ctx.every, ctx.ends = graphs, alphas, every, ends
        return torch.where(possible, totals, -torch.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        scores, lengths, normalizers, endings = ctx.saved_tensors
        graphs, ends = ctx.graphs, ctx.ends
        emissions = _Emissions(scores, lengths, graphs, normalizers)
        groups = (len(graphs), len(scores) // len(graphs))
        posteriors = torch.zeros_like(scores)
        last = graphs.final * endings.view(groups).index_select(0, graphs.state_graphs)  # (S, K)
        beta = torch.zeros_like(last)
        by_pdf = summing(emissions.rows, len(graphs) * scores.shape[2])
        buffers = beta.new_empty(ctx.every, 2, len(graphs.node_states), groups[1])
        for block in reversed(range(len(ctx.kept))):
            alpha, first = ctx.kept[block], block * ctx.every
            frames = range(first, min(first + ctx.every, max(ends)))
            for frame in frames:
                alpha = emissions.take(alpha, frame, *buffers[frame - first])
            for frame in reversed(frames):
                if frame + 1 in ends:
                    ending = (lengths == frame + 1).view(groups).index_select(0, graphs.state_graphs)
                    beta = torch.where(ending, last, beta)
                arrived, nodes = buffers[frame - first]
                occupied = nodes.mul_(beta.index_select(0, graphs.node_states))  # (N, K), sums to 1 per utterance
                table = product(by_pdf, occupied).view(groups[0], -1, groups[1])  # (G, P, K)
                posteriors[:, frame] = table.transpose(1, 2).reshape(len(scores), -1)
                beta = product(graphs.departures, occupied.div_(arrived.clamp_(min=FLOOR)))
        posteriors.mul_(gradient[:, None, None])
        return posteriors.masked_fill_((endings == 0)[:, None, None], 0.0), None, None, None


class _Emissions:
    """The network's weights of the nodes, frame by frame, divided by e^normalizer.

    The normalizers (B, T) are the highest scores of a frame at first, so that no exponential overflows; the forward
    recursion adds the logs of its sums to them.
    """

    def __init__(self, scores: Tensor, lengths: Tensor, graphs: GraphBatch, normalizers: Tensor | None = None) -> None:
        self.scores = scores
        self.graphs = graphs
        self.rows = graphs.node_graphs * scores.shape[2] + graphs.node_pdfs  # (N,) of a (G P, K) table
        if normalizers is None:
            used = torch.zeros(len(graphs), 1, scores.shape[2], dtype=torch.bool, device=scores.device)
            used.view(-1).index_fill_(0, self.rows, True)
            highest = scores.masked_fill(~used, -torch.inf).amax(dim=2).double()
            normalizers = highest.masked_fill(~real_frames(lengths, scores.shape[1]), torch.inf)
        self.normalizers = normalizers

    def take(self, alpha: Tensor, frame: int, arrived: Tensor, nodes: Tensor) -> Tensor:
        """Return the states' probabilities (S, K) one frame later, before any rescaling.

        Probabilities that arrive at the nodes, (N, K), are written into the last two arguments, without and with the
        frame's weights.
        """
        weights = (self.scores[:, frame].double() - self.normalizers[:, frame, None]).exp_()
        weights.nan_to_num_(nan=0.0, posinf=0.0)  # in padding, in frames of -inf only, and of unused pdfs
        groups = len(self.graphs)
        table = weights.view(groups, -1, weights.shape[1]).transpose(1, 2).contiguous().flatten(0, 1)
        torch.threshold_(product(self.graphs.arrivals, alpha, out=arrived), FLOOR, 0.0)
        torch.index_select(table, 0, self.rows, out=nodes).mul_(arrived)
        return product(self.graphs.merging, nodes)

    def rescale(self, frame: int, sums: Tensor) -> None:
        """Divide all weights of a frame by sums (B,); a sum of zero makes them zero."""
        self.normalizers[:, frame] += torch.where(sums > FLOOR, sums.log(), torch.inf)
