"""Score a checkpoint; see `python evaluate.py --help`."""

from mtl.cli.main import main

if __name__ == "__main__":
    main("evaluate")
