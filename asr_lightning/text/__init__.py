"""Text on its way into and out of a recognizer: normalization and tokens."""
