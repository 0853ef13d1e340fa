"""Second implementations that results are compared to: slow, written out from the definitions."""
