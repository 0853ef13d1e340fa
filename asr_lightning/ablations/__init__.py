"""Ablations: comparisons of training runs that are written down as YAML, planned, run and tabulated."""

PARENT = "ASR_LIGHTNING_PARENT"  # holds the process id of the one that started a run; the run ends with it
