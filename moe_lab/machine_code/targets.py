"""The GPUs that kernels are compiled for, and which launch parameters are meant for which."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One GPU architecture: what Triton calls it, and how much shared memory a program may take."""

    backend: str
    architecture: int | str
    lanes: int  # threads of a warp
    shared_bytes: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024),
    "sm_90": Target("cuda", 90, 32, 227 * 1024),
    "sm_100": Target("cuda", 100, 32, 227 * 1024),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024),
    "gfx950": Target("hip", "gfx950", 64, 160 * 1024),
}
"""Ampere (A100), Hopper (H100, H200), Blackwell (B200), CDNA 3 (MI300), CDNA 4 (MI350).

Shared memory: CUDA C++ Programming Guide, table of technical specifications by compute capability (a block may have
1 KB less than a multiprocessor has); AMD CDNA 3 and CDNA 4 white papers, local data share.
"""

FAMILIES = {
    "interpreter": (),
    "ampere": ("sm_80",),
    "hopper": ("sm_90", "sm_100"),
    "cdna": ("gfx942", "gfx950"),
    "float32": tuple(TARGETS),
}
"""First word of a name in a kernel's `CONFIGS` -> the targets that launch with it."""


def targets_of(config: str | None) -> tuple[str, ...]:
    """The targets that a configuration is meant for; all of them for a kernel that has none.

    Example:
        >>> targets_of("hopper_small"), targets_of("interpreter"), len(targets_of(None))
        (('sm_90', 'sm_100'), (), 5)

    Raises ValueError for a name that begins with no known family.
    """
    if config is None:
        return tuple(TARGETS)
    family = config.split("_")[0]
    if family not in FAMILIES:
        raise ValueError(f"config must begin with one of {', '.join(FAMILIES)}; got {config!r}")
    return FAMILIES[family]


def check_targets(targets: Iterable[str]) -> list[str]:
    """The targets in the order of `TARGETS`, all of them if none is named; ValueError for an unknown one."""
    wanted = list(targets) or list(TARGETS)
    for name in wanted:
        if name not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}; got {name!r}")
    return [name for name in TARGETS if name in wanted]
