"""Losses of speech recognizers, one number per utterance."""
