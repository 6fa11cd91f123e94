"""Heads that find points."""
