"""`python -m luthier`, the same as the command `luthier`."""

from __future__ import annotations

from luthier.cli.main import run

if __name__ == "__main__":
    run()
