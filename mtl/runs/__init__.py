"""What a run is made from and leaves behind."""
