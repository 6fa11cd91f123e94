"""From what windows say to what is said of the whole image."""
