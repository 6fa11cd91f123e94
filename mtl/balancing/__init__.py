"""From several task losses to one update."""
