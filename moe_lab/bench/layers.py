"""Timing one layer of experts in every implementation: what the suites "cpu", "layer" and "decode" share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from moe_lab.bench.floor import Floor
from moe_lab.bench.graphs import CALLS, capture
from moe_lab.bench.inputs import copies_for_cold_caches, draw_inputs, take_turns
from moe_lab.bench.peers import PEERS, TOLERANCES, Peer, Prepared, reference_of, refusal, verify
from moe_lab.bench.rows import Measured, as_percentiles
from moe_lab.inputs import LayerInputs
from moe_lab.operators.products import onednn_is_faster
from moe_lab.profiling import Timing, time_interleaved
from moe_lab.profiling.memory import measure_peak_bytes
from moe_lab.roofline import LayerShape, expert_cost

FLOOR, WIDE_FLOOR = "matrix products alone", "matrix products alone, float32"
ONEDNN_FLOOR = "matrix products alone, oneDNN"
REST_S = 0.01
"""On a CPU threads look out for more work of the call before for so long (some 3 ms), on cores that the next needs."""
SLOW_S = 3.0
"""A call that takes longer is timed once, apart from the others: it is far from them anyway."""


@dataclass(frozen=True)
class Layer:
    """One layer to be timed: its sizes, its tokens, dtype and pass, on "cpu" or "cuda", with a load so uneven."""

    shape: LayerShape
    tokens: int
    dtype: torch.dtype
    direction: str
    device: str = "cpu"
    max_over_mean: float = 1.0
    mode: str = "eager"
    floor: bool = False
    peers: Sequence[str] = field(default_factory=lambda: tuple(PEERS))

    @property
    def name(self) -> str:
        """What a resumed run knows it by."""
        sizes = "x".join(str(size) for size in self.sizes.values())
        return f"{sizes} {self.dtype_name} {self.direction} {self.mode}"

    @property
    def dtype_name(self) -> str:
        """The dtype as records write it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def sizes(self) -> dict[str, int | float]:
        """The shape as records write it."""
        shape = self.shape
        return {
            "tokens": self.tokens,
            "d_model": shape.d_model,
            "d_expert": shape.d_expert,
            "num_experts": shape.num_experts,
            "top_k": shape.top_k,
            "max_over_mean": self.max_over_mean,
        }

    def row(self, implementation: str, **values: object) -> Measured:
        """A row of this layer."""
        mode = self.mode
        return Measured(implementation, self.direction, self.sizes, self.dtype_name, mode=mode, **values)

    def not_measured(self, why_not: str) -> list[Measured]:
        """The rows of a layer whose turn never came."""
        return [_about(self.row(name, why_not=why_not), PEERS[name]) for name in self.peers]


def time_layer(layer: Layer, seconds: float) -> list[Measured]:
    """Verify every implementation, then time those that are right in turns for about ``seconds``; a row for each.

    What is missing, refuses the shape, raises, or gives a wrong answer is a row that says so. A wrong answer of our own
    raises ValueError: it stops the suite.
    """
    start = time.monotonic()
    inputs = _draw(layer, seed=0)
    reference = reference_of(inputs, _directions(layer))
    bytes_each = sum(tensor.numel() * tensor.element_size() for tensor in (inputs.w_gate_up, inputs.w_down, inputs.x))
    copies = [inputs, *(_draw(layer, seed) for seed in range(1, copies_for_cold_caches(bytes_each)))]
    calls, rows = {}, {}
    for name in layer.peers:
        peer = PEERS[name]
        row = _about(layer.row(name), peer)
        rows[name], call = _prepare(layer, peer, row, copies, reference)
        if call:
            calls[name] = call
    if layer.floor:
        for name, options in _floors(layer.dtype).items():
            floors = [Floor(one, **options) for one in copies]
            tolerance = TOLERANCES[floors[0].rows.dtype]
            rows[name] = layer.row(name, error=floors[0].error(), tolerance=tolerance, version=torch.__version__)
            calls[name] = take_turns([floor.call(layer.direction) for floor in floors])
    cost = expert_cost(
        layer.shape,
        layer.tokens,
        direction="forward" if layer.direction == "forward" else "training",
        dtype=layer.dtype_name,
        load=inputs.routing.load.cpu(),
    )
    rest_s = REST_S if layer.device == "cpu" else 0.0
    timings = _time(calls, max(1.0, seconds - (time.monotonic() - start)), rest_s)
    per_sample = CALLS if layer.mode == "graph" else 1
    return [
        replace(row, **as_percentiles(timings[name], per_sample), flops=int(cost.flops), bytes=int(cost.bytes))
        if name in timings
        else row
        for name, row in rows.items()
    ]


def _draw(layer: Layer, seed: int) -> LayerInputs:
    options = {"dtype": layer.dtype, "device": layer.device, "max_over_mean": layer.max_over_mean}
    return draw_inputs(layer.shape, layer.tokens, **options, seed=seed)


def _directions(layer: Layer) -> tuple[str, ...]:
    return ("forward",) if layer.direction == "forward" else ("forward", "forward+backward")


def _about(row: Measured, peer: Peer) -> Measured:
    return replace(row, version=peer.version, call=peer.call)


def _prepare(
    layer: Layer, peer: Peer, row: Measured, copies: list[LayerInputs], reference: dict
) -> tuple[Measured, Callable[[], object] | None]:
    """The row as far as it goes without a clock, and what to time; None where the row says why not."""
    inputs = copies[0]
    why_not = refusal(peer, inputs, _directions(layer))
    if layer.mode == "graph" and not peer.graph:
        why_not = why_not or "cannot be captured in a CUDA graph"
    if why_not:
        return replace(row, why_not=why_not), None
    try:
        prepared = peer.prepare(inputs)
        error, tolerance = verify(prepared, inputs, _directions(layer), reference)
        row = replace(row, error=error, tolerance=tolerance)
        if not row.verified:
            if peer.ours:
                raise ValueError(f"{peer.name} on {row.shape} is off by {error}, allowed {tolerance}")
            return replace(row, why_not=f"wrong: off by {error:.2g}, allowed {tolerance:.2g}"), None
        calls = [_call(layer, one) for one in [prepared, *(peer.prepare(other) for other in copies[1:])]]
        row = replace(row, peak_bytes=measure_peak_bytes(calls[0], layer.device))
        call = take_turns(calls)
        return row, capture(call) if layer.mode == "graph" else call
    except Exception as error:  # whatever a rival raises, the suite goes on and its row says what it was
        if peer.ours:
            raise
        first = (str(error).strip() or "no message").splitlines()[0]
        return replace(row, why_not=f"{type(error).__name__}: {first}"[:160]), None


def _call(layer: Layer, prepared: Prepared) -> Callable[[], object]:
    if layer.direction != "forward":
        return prepared.forward_backward

    @torch.no_grad()
    def forward() -> object:
        return prepared.forward()

    return forward


def _floors(dtype: torch.dtype) -> dict[str, dict]:
    """The floor in the layer's own dtype; and in float32, which some processors multiply faster than bfloat16.

    In float32 by PyTorch's own choice of a library, as rivals have it; and by oneDNN, where our layers take that.
    """
    if dtype != torch.float32:
        return {FLOOR: {}, WIDE_FLOOR: {"dtype": torch.float32}}
    return {FLOOR: {}} | ({ONEDNN_FLOOR: {"by_onednn": True}} if onednn_is_faster() else {})


def _time(calls: dict[str, Callable[[], object]], seconds: float, rest_s: float) -> dict[str, Timing]:
    """In turns; what turns out to be slow was timed by that, so that the others get enough of the time."""
    first = {name: time_interleaved({name: call}, repeats=1, warmup=0)[name] for name, call in calls.items()}
    fast = {name: call for name, call in calls.items() if first[name].p50_ms < 1e3 * SLOW_S}
    return first | (time_interleaved(fast, repeats=51, warmup=1, seconds=seconds, rest_s=rest_s) if fast else {})
