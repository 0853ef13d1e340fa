"""Text on its way into and out of a recogniser: normalisation and tokens."""
