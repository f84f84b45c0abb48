"""The program of every child process: `python -m luthier.core.child_process CHANNEL MODULE:FUNCTION`."""

from __future__ import annotations

import sys

from luthier.core.child_process.channel import main

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
