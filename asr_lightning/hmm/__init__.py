"""Hidden Markov models of the hybrid system. Graphs, Gaussian mixtures and best-path search use Kaldi's code."""
