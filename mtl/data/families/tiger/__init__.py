"""TIGER: tissue and cells in breast cancer slides."""
