"""Widgets: one Python class and one plain ES module each, complete in the browser without a kernel."""

from moe_lab.widgets.accountant import Accountant
from moe_lab.widgets.all_to_all_board import AllToAllBoard
from moe_lab.widgets.capacity_bins import CapacityBins
from moe_lab.widgets.collapse_and_rescue import CollapseAndRescue
from moe_lab.widgets.expert_roofline import ExpertRoofline
from moe_lab.widgets.memory_tracer import MemoryTracer
from moe_lab.widgets.race import Race
from moe_lab.widgets.route_one_batch import RouteOneBatch
from moe_lab.widgets.text_view import TextView
from moe_lab.widgets.tile_map import TileMap
from moe_lab.widgets.trace_player import TracePlayer
from moe_lab.widgets.who_goes_where import WhoGoesWhere

__all__ = [
    "Accountant",
    "AllToAllBoard",
    "CapacityBins",
    "CollapseAndRescue",
    "ExpertRoofline",
    "MemoryTracer",
    "Race",
    "RouteOneBatch",
    "TextView",
    "TileMap",
    "TracePlayer",
    "WhoGoesWhere",
]
