"""Layers that several architectures use; every sequence module is `(x, lengths) -> (y, lengths)`."""
