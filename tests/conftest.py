"""What the tests share. Warnings are errors, and every shape in a signature is checked while they run."""

import sys

import jaxtyping
import matplotlib.pyplot as plt
import pytest
import torch
from jaxtyping._import_hook import _JaxtypingFinder

from .fresh_python import Template
from .poison import fill_with_poison, is_poison

# A kernel's functions are read by Triton, which looks for what they call in their own module: a wrapper around them,
# as jaxtyping puts one around every function of moe_lab, would hide it. Kernels check their own arguments.
for finder in sys.meta_path:
    if isinstance(finder, _JaxtypingFinder):
        finder.should_instrument = lambda name, instrument=finder.should_instrument: (
            not name.startswith("moe_lab.kernels.") and instrument(name)
        )


@pytest.fixture
def unchecked_shapes():
    """Switch the shape checks of the test run off, so that our own errors for bad input are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def fresh():
    """Python processes that have imported torch and nothing else: ``run`` gives a finished one, ``start`` a running."""
    template = Template("torch")
    yield template
    template.close()


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """A figure left open is drawn a second time by the notebook that made it."""
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left, "this test left a figure open: is there a path on which a plot function does not close it?"


@pytest.fixture
def gpu():
    """The GPU, for tests that the interpreter cannot stand in for: bfloat16, large shapes, CUDA graphs."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    return torch.device("cuda")


MARGIN = 4096  # numbers on either side; a multiple of 16 bytes, so that alignment stays what it was


@pytest.fixture
def surrounded():
    """A function that copies a tensor to the middle of poison, where a read beyond its ends is noticed."""

    def surround(tensor):
        memory = fill_with_poison(tensor.new_zeros(tensor.numel() + 2 * MARGIN))
        return memory[MARGIN : MARGIN + tensor.numel()].view(tensor.shape).copy_(tensor)

    return surround


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory (torch.empty, empty_like, new_empty) holds poison; a write before or behind it fails the test.

    Gives the list of the shapes asked for so far.
    """
    shapes, memories = [], []

    def poison(function):
        def allocate(*args, **options):
            plain = function(*args, **options)
            if not plain.numel() or plain.device.type == "meta":
                return plain
            memory = fill_with_poison(plain.new_zeros(plain.numel() + 2 * MARGIN))
            shapes.append(tuple(plain.shape))
            memories.append(memory)
            return memory[MARGIN:-MARGIN].view(plain.shape)

        return allocate

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
    yield shapes
    for shape, memory in zip(shapes, memories, strict=True):
        assert is_poison(memory[:MARGIN]).all(), f"something wrote in front of the buffer of shape {shape}"
        assert is_poison(memory[-MARGIN:]).all(), f"something wrote behind the buffer of shape {shape}"


@pytest.fixture
def agree():
    """A function that holds a result against one in float64: as a whole, and where it is worst."""
    allowed = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}

    def check(name, got, want, tolerance=None):
        tolerance = tolerance or allowed[got.dtype]
        assert got.shape == want.shape, f"{name} is {tuple(got.shape)} and not {tuple(want.shape)}"
        got, want = got.detach().double(), want.detach().double()
        assert want.isfinite().all(), f"what {name} is held against must be finite"
        if not want.numel():
            return
        off = got - want
        whole, scale = float(off.norm()), float(want.norm())
        assert whole <= tolerance * scale, f"{name} is off by {whole:.2e} where {tolerance * scale:.2e} is allowed"
        rms = want.square().mean().sqrt().clamp_min(1e-300)
        worst = float((off.abs() / (rms + want.abs())).max())
        assert worst <= tolerance, f"{name} has an element off by {worst:.2e} of its RMS; {tolerance:.0e} is allowed"

    return check


@pytest.fixture
def in_float64():
    """A function that gives the same arguments with every floating-point tensor in float64."""

    def widen(inputs):
        return [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in inputs]

    return widen


class Routed:
    """Experts (tokens, slots) and weights that a test chose, and the rows they get, by counting in plain Python."""

    def __init__(self, experts, num_experts, seed=0):
        draw = torch.Generator().manual_seed(seed)
        self.experts, self.num_experts = experts, num_experts
        self.weights = torch.rand(experts.shape, generator=draw) + 0.1
        self.tokens, self.slots = experts.shape

    def rows(self, block_m):
        """One (expert, token, slot) a row in use; token and slot are -1 in padding."""
        rows = []
        for expert in range(self.num_experts):
            for token in range(self.tokens):
                for slot in range(self.slots):
                    if int(self.experts[token, slot]) == expert:
                        rows.append((expert, token, slot))
            while len(rows) % block_m:
                rows.append((expert, -1, -1))
        return rows


def spread_over(tokens, num_experts, top_k):
    """Distinct experts for each token, in an order that no table is sorted in."""
    return torch.tensor([[(3 * t + s) % num_experts for s in range(top_k)] for t in range(tokens)])


EDGES = {
    "no_tokens": lambda: Routed(torch.zeros(0, 2, dtype=torch.int64), 3),
    "one_token": lambda: Routed(torch.tensor([[2, 0]]), 4),
    "one_slot_of_many_experts": lambda: Routed(torch.tensor([[90]]), 97),
    "all_on_one_expert": lambda: Routed(torch.full((18, 1), 2), 4),
    "every_expert": lambda: Routed(spread_over(5, 3, 3), 3),
    "all_slots_empty": lambda: Routed(torch.full((3, 2), -1), 3),
    "some_slots_empty": lambda: Routed(torch.tensor([[-1, 3], [0, -1], [-1, -1], [3, 0]]), 5),
    "one_expert_twice": lambda: Routed(torch.tensor([[1, 1, 0], [2, 1, 2], [2, 2, 2]]), 3),
    "full_tiles": lambda: Routed(torch.arange(64).view(64, 1) % 2, 2),
}


@pytest.fixture(params=EDGES)
def edge(request):
    """A `Routed` at the edge of what is allowed. Some weights are 0 and some negative."""
    routed = EDGES[request.param]()
    routed.weights.view(-1)[1::4] = 0.0
    routed.weights.view(-1)[2::4] *= -1
    return routed


@pytest.fixture
def replayed(gpu):
    """A function that captures a launcher in a CUDA graph and gives what a replay writes into poisoned outputs.

    ``before`` is called between the two, to change what the graph reads.
    """

    def replay(function, before=lambda: None):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()  # compiles: that must not happen while capturing
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for output in outputs:
            fill_with_poison(output)
        before()
        graph.replay()
        torch.cuda.synchronize()
        return outputs

    return replay
