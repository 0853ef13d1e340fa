"""Analysis of recognizers and their training: projections, neighbours, probes, alignments, lines and curves."""
