"""Looks inside recognisers and their training: projections, neighbours, probes, alignments, lines and curves."""
