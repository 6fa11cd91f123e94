"""Ground floor: the words every room shares. Imports nothing else of `mtl`."""
