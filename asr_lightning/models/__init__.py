"""One base class and one file per architecture."""
