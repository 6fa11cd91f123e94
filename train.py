"""Train a task suite; see `python train.py --help`."""

from mtl.cli.main import main

if __name__ == "__main__":
    main("train")
