"""From what a network puts out to hypotheses of what was said."""
