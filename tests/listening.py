"""Which ports processes listen on, as Linux tells: read from /proc, where no privilege is needed for one's own."""

import ipaddress
from pathlib import Path

LISTENS = "0A"


def addresses(*pids):
    """The addresses at which these processes listen."""
    heard = {}
    for table in ("tcp", "tcp6"):
        for row in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = row.split()[:10]
            if state == LISTENS:
                heard[f"socket:[{inode}]"] = read_address(local.split(":")[0])
    return [heard[name] for pid in pids for name in links(Path("/proc", str(pid), "fd")) if name in heard]


def links(folder):
    for path in folder.iterdir():
        try:
            yield str(path.readlink())
        except FileNotFoundError:  # closed since
            continue


def read_address(digits):
    """An address as /proc has it: words of 4 bytes, each the wrong way round."""
    raw = bytes.fromhex(digits)
    return ipaddress.ip_address(b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4)))


def outside(*pids):
    """Those addresses at which other machines could reach these processes."""
    return [str(address) for address in addresses(*pids) if not address.is_loopback]
