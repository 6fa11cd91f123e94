"""From an image array to predictions, without Lightning and without YAML."""
