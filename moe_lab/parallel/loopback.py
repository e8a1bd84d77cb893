"""The store in which ranks find each other, open to this machine alone."""

import socket
from typing import Any

from torch.distributed import TCPStore

ADDRESS = "127.0.0.1"


def open_store(host_name: str = ADDRESS, port: int = 0, *, is_master: bool = True, **options: Any) -> TCPStore:
    """A TCPStore; where this process serves it, only the processes of this machine can reach it.

    PyTorch's own server listens on every network that the machine is in, whatever its name is told. It asks nobody who
    they are, so it is given a socket that listens on the loopback device.

    Example:
        >>> store = open_store()
        >>> store.set("who", "rank 0")
        >>> store.get("who")
        b'rank 0'

    Raises OSError where the port is taken.
    """
    if is_master:
        server = socket.create_server((ADDRESS, port))
        host_name, port = server.getsockname()[:2]
        options["master_listen_fd"] = server.detach()  # PyTorch's from here on
    return TCPStore(host_name, port, is_master=is_master, **options)
