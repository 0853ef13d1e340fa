"""Ablations: comparisons of training runs that are written down as YAML, planned, run and tabulated."""

PARENT = "ASR_LIGHTNING_PARENT"  # the process whose end is that of the run, where it has started the run
