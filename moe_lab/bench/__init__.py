"""Benchmarks: verify, then time, then record. One file a suite; `run` does what they share."""

from moe_lab.bench.align import align
from moe_lab.bench.ceilings import ceilings
from moe_lab.bench.cpu import cpu
from moe_lab.bench.decode import decode
from moe_lab.bench.dispatch import dispatch
from moe_lab.bench.exchange import exchange
from moe_lab.bench.layer import layer
from moe_lab.bench.order import order
from moe_lab.bench.record import Case, run
from moe_lab.bench.routers import routers
from moe_lab.bench.rows import Measured, show_table
from moe_lab.bench.transformers import transformers
from moe_lab.bench.watch import watch

__all__ = ["BASELINES", "SUITES", "Case", "Measured", "run", "show_table"]

SUITES = {
    "ceilings": ceilings,
    "cpu": cpu,
    "routers": routers,
    "dispatch": dispatch,
    "exchange": exchange,
    "transformers": transformers,
    "watch": watch,
    "layer": layer,
    "decode": decode,
    "align": align,
    "order": order,
}
"""Name of a suite -> what makes its cases."""

BASELINES = {
    "cpu": "matrix products alone",
    "routers": "torch.topk",
    "dispatch": "table",
    "transformers": "Transformers moe_lab",
    "watch": "not watched",
    "layer": "dense, equal FLOPs",
    "decode": "dense, equal FLOPs",
    "align": "sort_tokens",
    "order": "row-major",
}
"""What a suite's table shows its times as multiples of."""
