"""`python -m semvc.train`: the same as `semvc train`, error messages and exit codes included."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Run the command line's `train` group and exit with its code."""
    program = importlib.import_module("semvc.cli")  # the program's layers are above this one
    sys.exit(program.run(["train", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
