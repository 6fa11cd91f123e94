"""Whole jobs: train, score, compare, describe."""
