"""Put first on PYTHONPATH: every name that a Python process looks up, and every address that it connects to, is noted in a file.

Not those of this machine, by which ranks and a program's own processes meet.
"""

import os
import socket
import traceback
from pathlib import Path
from typing import Any

_FILE = os.environ.get("ROUNDS_TEST_CONNECTIONS")
_HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname(), socket.getfqdn()}


def _note(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if _FILE and name not in _HERE and not str(name).startswith("127."):
        by = [frame.filename.rpartition("site-packages/")[2] for frame in traceback.extract_stack()[:-2]]
        with Path(_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{name} by {' > '.join(dict.fromkeys(by[-40:]))}\n")


_look_up = socket.getaddrinfo


def _looked_up(host: Any, *arguments: Any, **more: Any) -> Any:
    _note(host)
    return _look_up(host, *arguments, **more)


class _Socket(socket.socket):
    def connect(self, address: Any) -> None:
        """Note the address and connect."""
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _note(address[0])
        return super().connect(address)

    def connect_ex(self, address: Any) -> int:
        """Note the address and connect."""
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _note(address[0])
        return super().connect_ex(address)


if _FILE:
    setattr(socket, "getaddrinfo", _looked_up)  # noqa: B010
    setattr(socket, "socket", _Socket)  # noqa: B010
