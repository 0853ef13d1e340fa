"""Hidden Markov models: what the hybrid needs besides its network. Graphs, Gaussians and decoding are Kaldi's own code."""

import kaldi_hmm_gmm  # noqa: F401 - before kaldi_decoder, whose import never returns when it comes first
