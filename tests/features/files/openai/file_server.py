"""A server of its own process, to be looked at from outside: HOME, the file for the key, the file for the port."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn

from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.server.api import create_app


def main(home: str, key_file: str, port_file: str) -> None:
    """Serve until killed; the files appear when connections are taken."""
    with Context.open(Path(home)) as context, socket.create_server(("127.0.0.1", 0)) as listening:
        _, key = create_key(context, "test", scopes=("train", "read"))
        Path(key_file).write_text(key)
        Path(f"{port_file}.part").write_text(str(listening.getsockname()[1]))
        Path(f"{port_file}.part").rename(port_file)
        uvicorn.Server(uvicorn.Config(create_app(context), log_level="warning")).run([listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
