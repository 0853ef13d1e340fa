"""Tests, which mirror the packages; `support` is what they share, `oracles` holds second implementations."""
