"""What watches a training: thin callbacks over pure functions."""
