"""Box detection on shared features."""
