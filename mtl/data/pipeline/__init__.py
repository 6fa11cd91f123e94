"""From records to batches: split, cache, windows, targets, samplers, loaders."""
