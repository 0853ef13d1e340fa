"""Corpora on disk as LightningDataModules."""
