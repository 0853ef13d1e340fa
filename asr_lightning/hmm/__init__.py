"""Hidden Markov models: what a hybrid needs besides its network."""
