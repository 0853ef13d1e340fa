"""Looks at arrays: projections, neighbours, probes, alignments and curves, by pure functions."""
