"""The capstone: briefs with budgets, designs that answer them, and a grader made of the lab's own counts."""

from moe_lab.capstone.briefs import AT_LEAST, AT_MOST, BRIEFS, PROMISES, Brief
from moe_lab.capstone.costs import (
    Floor,
    awake_share,
    count_design,
    decode_floor,
    device_bytes,
    memory,
    prefill_floor,
)
from moe_lab.capstone.design import Design, read_design, write_design
from moe_lab.capstone.examples import laptop_design, published_design
from moe_lab.capstone.grading import grade
from moe_lab.capstone.report import Report, Row
from moe_lab.capstone.spread import Spread, place_design, route_tokens, spread

__all__ = [
    "AT_LEAST",
    "AT_MOST",
    "BRIEFS",
    "PROMISES",
    "Brief",
    "Design",
    "Floor",
    "Report",
    "Row",
    "Spread",
    "awake_share",
    "count_design",
    "decode_floor",
    "device_bytes",
    "grade",
    "laptop_design",
    "memory",
    "place_design",
    "prefill_floor",
    "published_design",
    "read_design",
    "route_tokens",
    "spread",
    "write_design",
]
