"""Readers of data sets, splits, transforms, caches and the datamodule."""
