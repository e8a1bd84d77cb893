"""One widget of each class, small and quick to make: those that the browser tests look at."""

from ..browser import test_widget_all_to_all_board as board_tests
from ..browser import test_widget_race as race_tests
from ..browser import test_widget_who_goes_where as who_tests
from ..browser import test_widgets_page as page_tests

MAKERS = {
    "Accountant": page_tests.account,
    "AllToAllBoard": board_tests.board,
    "CapacityBins": page_tests.bins,
    "CollapseAndRescue": page_tests.rescue,
    "ExpertRoofline": page_tests.roof,
    "MemoryTracer": page_tests.tracer,
    "Race": race_tests.recorded,
    "RouteOneBatch": page_tests.batch,
    "TextView": page_tests.reading,
    "TileMap": page_tests.tile_map,
    "TracePlayer": page_tests.played,
    "WhoGoesWhere": who_tests.made,
}
"""Class -> a function without arguments."""
