"""Heads: one module per task kind."""
