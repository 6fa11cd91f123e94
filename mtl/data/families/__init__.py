"""Data sets as they lie on disk, one package each."""
