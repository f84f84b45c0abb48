"""The program of every child process: `python -m luthier.core.child_process CHANNEL MODULE:FUNCTION`."""

from __future__ import annotations

import sys

from luthier.core.child_process.channel import main
from luthier.core.system.process_setup import run_to_end

if __name__ == "__main__":
    # Whoever has started it waits for its end.
    run_to_end(lambda: main(sys.argv[1], sys.argv[2]))
