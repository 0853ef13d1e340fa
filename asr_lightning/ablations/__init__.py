"""Ablations: variants of an experiment, as one YAML, planned, run and compared in a table."""

PARENT = "ASR_LIGHTNING_PARENT"  # holds the process id of the one that started a run; the run ends with it
