"""Pictures of annotations and predictions."""
