"""Task kinds: everything that depends on one, in one file each."""
