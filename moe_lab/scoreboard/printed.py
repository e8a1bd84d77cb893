"""What the sources of the claims printed: times, steps and speeds, and what follows from them alone."""

from pathlib import Path

from moe_lab.experiments.ratios import Ratios
from moe_lab.scoreboard.facts import Finding

AMD_EXPERTS = 256
AMD_TIMES = {
    ("A100", 8_192): (77.44, 124.92),
    ("A100", 16_384 * 128): (5_966.81, 17_396.51),
    ("A100", 32_768 * 128): (12_450.05, 34_711.14),
    ("H200", 16_384 * 128): (4_508.42, 12_361.15),
    ("H200", 32_768 * 128): (9_023.48, 24_683.70),
    ("MI300X", 8_192): (88.16, 281.64),
    ("MI300X", 16_384): (134.02, 448.88),
    ("MI300X", 16_384 * 128): (6_865.64, 43_266.09),
    ("MI300X", 32_768 * 128): (13_431.80, 89_788.58),
    ("MI100", 8_192): (79.36, 426.71),
    ("MI100", 16_384): (86.40, 681.12),
    ("MI100", 16_384 * 128): (3_047.68, 62_442.85),
    ("MI100", 32_768 * 128): (7_211.37, 129_388.43),
}
"""(GPU, tokens) -> (new kernel, serial Triton kernel), as the article prints them; it names no unit."""
SWITCH = Ratios(steps=450_000 / 60_000, examples=1_000 / 1_600)
"""T5-Base over Switch-Base with 64 experts: steps to one quality; examples a second at capacity factor 1.0."""


def amd_rows(data: Path) -> Finding:
    """Every row of the article: the serial kernel's time over the new one's."""
    ratios = {f"{gpu}, {tokens:,} tokens": old / new for (gpu, tokens), (new, old) in AMD_TIMES.items()}
    return Finding("printed", ratios, digits=1, about="the article's own rows")


def switch_parts(data: Path) -> Finding:
    """The ratio of seconds that the printed ratios of steps and of examples a second give."""
    about = f"{SWITCH.steps:g} in steps times {SWITCH.examples:g} in examples a second"
    return Finding("printed", {"steps x examples": SWITCH.seconds}, digits=1, about=about)
