"""Benchmarks: verify, then time, then record. One file a suite; `run` does what they share."""

from moe_lab.bench.ceilings import ceilings
from moe_lab.bench.record import Measured, run, show_table
from moe_lab.bench.routers import routers

__all__ = ["SUITES", "Measured", "run", "show_table"]

SUITES = {"routers": routers, "ceilings": ceilings}
"""Name of a suite -> what makes its cases: functions that each return verified rows."""
