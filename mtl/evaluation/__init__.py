"""Honest numbers: thresholds, intervals, baselines, comparisons, reports."""
