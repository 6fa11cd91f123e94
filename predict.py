"""Use a checkpoint on images; see `python predict.py --help`."""

from mtl.cli.main import main

if __name__ == "__main__":
    main("predict")
