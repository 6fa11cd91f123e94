"""Feature extractors, their freezing, their weights and their adapters."""
