"""Whole-slide images: files, rasters, one pass of a network, results."""
