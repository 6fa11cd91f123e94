"""Metrics over whole images."""
