"""What the system says of the processor."""

from pathlib import Path


def say_cpuinfo(name: str, file: Path = Path("/proc/cpuinfo")) -> str:
    """What Linux's file of processors says under a name of the first one that has it; nothing, where there is none.

    Example:
        >>> say_cpuinfo("no such name")
        ''
    """
    try:
        lines = file.read_text().splitlines()
    except OSError:  # another system, or a closed one
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
