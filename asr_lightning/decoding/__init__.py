"""Searches: from the outputs of networks to hypotheses."""
