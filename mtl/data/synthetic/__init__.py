"""Generators of small data sets in native layouts, for tests and the demo."""
