"""Losses of the transducer [Graves 2012, "Sequence transduction with recurrent neural networks", section 2.4].

An alignment begins at frame 0 before any token. At node (t, u), frame t after u tokens, it emits token u + 1 and stays
in the frame, or emits a blank and goes on to the next frame; the last frame ends with a blank after all tokens. With y
the probability of the next token and b that of the blank, the probability of being at (t, u) is

    alpha(t, u) = alpha(t - 1, u) b(t - 1, u) + alpha(t, u - 1) y(t, u - 1),    alpha(0, 0) = 1

and the loss is -log(alpha(T - 1, U) b(T - 1, U)).

    joint.py     the exact loss, computed together with the joint network
    pruned.py    the loss over the alignments that stay near the likely ones
    logits.py    the loss of given logits, ours and torchaudio's
    lattice.py   the recursions and the operations on blocks that these share, in plain PyTorch
    kernels.py   the same functions in Triton, for a GPU
    check.py     whether those kernels compute correctly on this machine
"""
