"""Segmentation decoders on shared features."""
