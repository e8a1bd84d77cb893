"""Without a network: every Python process of the tests, the kernels of the notebooks included, that asks for another
machine, or listens to others, gets an error.

Python imports a module of this name at its start, wherever its path has one.
"""

import ipaddress
import socket
import sys

ASKS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind")
LOOKS_UP = ("socket.getaddrinfo", "socket.gethostbyname")


class NoNetworkHere(RuntimeError):
    """A lesson or a test asked for another machine; an error of no kind that a library expects."""


def is_here(host):
    """Whether a host is this machine; ``None`` and an empty name are a server's that listens to everybody."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse(event, arguments):
    """Look at what Python is about to do."""
    if event in ASKS:
        address = arguments[1]
        if isinstance(address, tuple) and isinstance(address[0], str) and not is_here(address[0]):
            raise NoNetworkHere(f"{event} {address}: lessons and tests run without a network")
    elif event in LOOKS_UP:
        host = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        if host and not is_here(host):
            raise NoNetworkHere(f"{event} {host}: lessons and tests run without a network")


sys.addaudithook(refuse)
