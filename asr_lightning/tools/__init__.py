"""One file per command that is neither fit nor test."""
