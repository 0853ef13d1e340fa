"""Losses that give one number per utterance."""
