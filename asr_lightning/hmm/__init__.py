"""Hidden Markov models: what a hybrid needs besides its network. Graphs, Gaussians and searches are Kaldi's code."""
