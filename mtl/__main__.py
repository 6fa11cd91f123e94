"""`python -m mtl`."""

from mtl.cli.main import main

if __name__ == "__main__":
    main()
