"""The roofline: counts against plain loops and hand-worked values, limits, and a measurement that refuses to hurry."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab import roofline
from moe_lab.accounting.layer import expert_flops
from moe_lab.checkpoint import read_json, write_json
from moe_lab.inputs import make_router_logits
from moe_lab.profiling import Timing
from moe_lab.roofline import (
    BYTES,
    DEVICES,
    DIRECTIONS,
    SHAPES,
    Device,
    LayerShape,
    attainable,
    best_rates,
    compute_bound_from,
    each_expert,
    expert_cost,
    experts_hit,
    measure_ceilings,
    measure_copies,
    measure_products,
    measured_device,
    measured_devices,
    popularity,
    tokens_per_expert,
)
from moe_lab.routers import route

MODELS = Path(__file__).parents[1] / "data" / "models"
TOY = Device("toy", {"float32": 8e12, "bfloat16": 16e12}, 2e12, "data sheet", "made up")
TABLE = Device("measured H200", {"bfloat16": 790e12}, 4.3e12, "measured", "product and copy of one machine")

# Worked out apart from this package, router included: experts that are hit, GFLOP, MB and microseconds forward, what
# limits, MB of the backward pass (it reads what was saved; that the forward pass must write it was not counted).
WORKED_OUT = [
    ("Mixtral 8x7B", 1, 2.0, 0.70, 704.7, 163.9, "memory", 3523.4),
    ("Mixtral 8x7B", 16, 7.9, 11.28, 2790.7, 649.0, "memory", 5611.1),
    ("Mixtral 8x7B", 1024, 8.0, 721.62, 2835.4, 913.4, "compute", 5779.8),
    ("DeepSeek-V3", 16, 102.0, 11.33, 8985.0, 2089.5, "memory", 31531.2),
    ("DeepSeek-V3", 128, 251.6, 90.66, 22168.5, 5155.5, "memory", 44723.6),
    ("DeepSeek-V3", 32768, 256.0, 23210.00, 23491.8, 29379.8, "compute", 48653.9),
    ("Qwen3-30B-A3B", 1, 8.0, 0.08, 76.0, 17.7, "memory", 1283.5),
    ("Qwen3-30B-A3B", 128, 128.0, 9.73, 1209.2, 281.2, "memory", 2420.3),
    ("Qwen3-30B-A3B", 8192, 128.0, 622.77, 1275.6, 788.3, "compute", 2717.9),
    ("OLMoE-1B-7B", 16, 56.4, 1.61, 710.6, 165.3, "memory", 1516.3),
    ("OLMoE-1B-7B", 1024, 64.0, 103.35, 814.0, 189.3, "memory", 1656.8),
    ("OLMoE-1B-7B", 32768, 64.0, 3307.12, 1074.0, 4186.2, "compute", 3087.0),
]


@pytest.mark.parametrize(
    ("name", "tokens", "hit", "gflop", "megabytes", "floor_us", "limit", "backward_mb"), WORKED_OUT
)
def test_values_worked_out_separately(name, tokens, hit, gflop, megabytes, floor_us, limit, backward_mb):
    shape = SHAPES[name]
    cost, training = expert_cost(shape, tokens), expert_cost(shape, tokens, direction="training")
    router_flops = 2 * tokens * shape.d_model * shape.num_experts
    router_bytes = 2 * shape.d_model * shape.num_experts
    assert experts_hit(tokens, shape.num_experts, shape.top_k) == pytest.approx(hit, abs=0.051)
    assert (cost.flops + router_flops) / 1e9 == pytest.approx(gflop, abs=0.0051)
    assert (cost.bytes + router_bytes) / 1e6 == pytest.approx(megabytes, abs=0.051)
    bound = attainable(cost, TABLE)
    assert bound.limit == limit and bound.time_ms * 1e3 == pytest.approx(floor_us, rel=0.01)
    assert router_flops < 0.01 * cost.flops
    assert (training.bytes - cost.bytes - training.saved_bytes / 2) / 1e6 == pytest.approx(backward_mb, abs=0.051)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_published_configs(name):
    (config,) = (one["config"] for one in map(read_json, MODELS.glob("*.json")) if one["name"] == name)
    experts = next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config)
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    assert SHAPES[name] == LayerShape(config["hidden_size"], width, experts, config["num_experts_per_tok"])


@pytest.mark.parametrize("name", SHAPES)
def test_flops_are_those_of_the_accounts(name):
    shape = SHAPES[name]
    flops = expert_flops(96 * shape.top_k, shape.d_model, shape.d_expert)
    assert expert_cost(shape, 96).flops == flops.forward
    assert expert_cost(shape, 96, direction="training").flops == flops.total


def count_by_loops(shape, tokens, load, training, size):
    """FLOPs and bytes expert by expert, matrix by matrix, in whole numbers."""
    d, f, flops, moved = shape.d_model, shape.d_expert, 0, 0
    matrices = [(d, f), (d, f), (f, d)]  # gate, up, down
    for rows in load:
        for inputs, outputs in matrices:
            products = [2 * rows * inputs * outputs]
            if training:
                products += [2 * rows * outputs * inputs, 2 * inputs * rows * outputs]  # of the inputs, the weights
                moved += size * inputs * outputs  # the gradient is written, whoever was hit
            flops += sum(products)
            reads = 2 if training else 1
            moved += reads * size * inputs * outputs if rows else 0
        for _ in range(rows):
            moved += 2 * size * (f + f) if training else 0  # gate and up, saved and read
    for _ in range(tokens):
        moved += size * d * (5 if training else 2)  # x, y; dy, x, dx
    return flops, moved


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 40), st.integers(1, 40), st.data())
@settings(deadline=None)
def test_a_load_costs_what_loops_count(load, d_model, d_expert, data):
    top_k = data.draw(st.integers(1, len(load)))
    tokens = max(1, *load, -(-sum(load) // top_k)) + data.draw(st.integers(0, 3))
    load = load if sum(load) else [1] * len(load)
    top_k = max(top_k, -(-sum(load) // tokens))
    shape, dtype = LayerShape(d_model, d_expert, len(load), top_k), data.draw(st.sampled_from(sorted(BYTES)))
    for direction in DIRECTIONS:
        cost = expert_cost(shape, tokens, direction=direction, dtype=dtype, load=torch.tensor(load))
        flops, moved = count_by_loops(shape, tokens, load, direction == "training", BYTES[dtype])
        assert cost.flops == flops and cost.bytes == moved
        assert cost.intensity == pytest.approx(flops / moved)


@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(1, 4, 2), (2, 4, 2), (3, 4, 1), (3, 3, 3), (2, 5, 3)])
def test_experts_hit_is_the_mean_over_all_routings(tokens, num_experts, top_k):
    choices = list(itertools.combinations(range(num_experts), top_k))
    woken = [len(set().union(*batch)) for batch in itertools.product(choices, repeat=tokens)]
    assert experts_hit(tokens, num_experts, top_k) == pytest.approx(np.mean(woken))


def test_the_expectation_is_met_by_routings_that_were_drawn():
    logits = torch.zeros(16, 64)
    draw = torch.Generator().manual_seed(0)
    shape = LayerShape(8, 4, 64, 8)
    bytes_moved = [
        expert_cost(shape, 16, load=route(logits, 8, "random", generator=draw).load).bytes for _ in range(200)
    ]
    assert np.mean(bytes_moved) == pytest.approx(expert_cost(shape, 16).bytes, rel=0.01)


def test_a_load_from_a_router_counts_its_rows():
    routing = route(make_router_logits(256, 8), 2, "capacity_top_k", capacity_factor=0.75)
    cost = expert_cost(LayerShape(16, 4, 8, 2), 256, load=routing.load)
    assert cost.flops == 6 * 16 * 4 * int(routing.load.sum()) < 6 * 16 * 4 * 512


@given(st.integers(1, 64), st.data())
@settings(deadline=None, max_examples=60)
def test_popularity_has_the_skew_that_was_asked_for(num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    skew = data.draw(st.floats(1, num_experts / top_k))
    chances = popularity(num_experts, top_k, skew)
    assert sum(chances) == pytest.approx(top_k) and len(chances) == num_experts
    assert chances == sorted(chances, reverse=True) and 0 < chances[-1] <= chances[0] <= 1
    assert chances[0] / (top_k / num_experts) == pytest.approx(skew, rel=1e-6)


def test_popularity_follows_zipf():
    chances = np.array(popularity(32, 4, 2.5))
    slope = np.diff(np.log(chances)) / np.diff(np.log(np.arange(1, 33)))
    assert slope == pytest.approx(np.full(31, slope[0])) and slope[0] < 0
    assert popularity(8, 2) == [0.25] * 8


def test_a_skew_wakes_fewer_experts():
    even, skewed = experts_hit(16, 64, 8), experts_hit(16, 64, 8, 7)
    chances = popularity(64, 8, 7)
    assert skewed == pytest.approx(sum(1 - math.prod([1 - chance] * 16) for chance in chances))
    assert skewed < even
    shape = LayerShape(16, 16, 64, 8)
    assert expert_cost(shape, 16, max_over_mean=7).intensity > expert_cost(shape, 16).intensity


def test_edges():
    assert tokens_per_expert(0, 8, 2) == 0 and experts_hit(0, 8, 2) == 0 and experts_hit(0, 4, 4) == 0
    assert experts_hit(1, 8, 2) == pytest.approx(2) and experts_hit(7, 4, 4) == 4
    everyone = expert_cost(LayerShape(8, 4, 4, 4), 3)
    assert everyone.weight_bytes == 2 * 4 * 3 * 8 * 4 and everyone.flops == 6 * 12 * 8 * 4
    alone = LayerShape(8, 4, 1, 1)
    assert alone.dense == alone and expert_cost(alone, 5) == expert_cost(alone, 5, load=torch.tensor([5]))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_dense_layer_has_the_same_flops_and_fewer_weights(name, direction):
    shape = SHAPES[name]
    for tokens in (1, 64, 4096):
        sparse, dense = (expert_cost(one, tokens, direction=direction) for one in (shape, shape.dense))
        assert dense.flops == sparse.flops
        assert dense.token_bytes == sparse.token_bytes and dense.saved_bytes == sparse.saved_bytes
        assert dense.weight_bytes <= sparse.weight_bytes * (1 + 1e-9)
    one = expert_cost(shape, 1)
    assert one.weight_bytes == pytest.approx(expert_cost(shape.dense, 1).weight_bytes), "a token wakes top_k experts"


def test_under_the_roof():
    shape, device = LayerShape(64, 64, 8, 2), TOY
    for tokens, dtype in itertools.product((1, 2, 8, 64, 4096), device.flops_per_s):
        cost = expert_cost(shape, tokens, dtype=dtype)
        bound = attainable(cost, device, dtype)
        arithmetic_s, memory_s = cost.flops / device.flops_per_s[dtype], cost.bytes / device.bytes_per_s
        assert bound.time_ms == pytest.approx(1e3 * max(arithmetic_s, memory_s))
        assert bound.flops_per_s * bound.time_ms / 1e3 == pytest.approx(cost.flops)
        assert bound.limit == ("compute" if arithmetic_s >= memory_s else "memory")
    assert device.ridge("float32") == 4 and device.ridge("bfloat16") == 8


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.data())
@settings(deadline=None, max_examples=60)
def test_compute_limits_from_the_first_batch_that_reaches_the_ridge(d_model, d_expert, num_experts, data):
    shape = LayerShape(d_model, d_expert, num_experts, data.draw(st.integers(1, num_experts)))
    how = {
        "direction": data.draw(st.sampled_from(DIRECTIONS)),
        "dtype": data.draw(st.sampled_from(sorted(TOY.flops_per_s))),
        "max_over_mean": data.draw(st.floats(1, num_experts / shape.top_k)),
    }
    found = compute_bound_from(shape, TOY, **how)
    limits = [attainable(expert_cost(shape, tokens, **how), TOY, how["dtype"]).limit for tokens in range(1, 401)]
    scanned = limits.index("compute") + 1 if "compute" in limits else None
    assert found == scanned if found is None or found <= 400 else scanned is None
    if scanned:
        assert set(limits[scanned - 1 :]) == {"compute"}


def test_a_layer_that_memory_always_limits():
    narrow = LayerShape(1024, 2, 8, 1)  # 3 * d_expert / 2 FLOP/byte at most
    assert compute_bound_from(narrow, DEVICES["H200"]) is None
    assert attainable(expert_cost(narrow, 10**9), DEVICES["H200"]).limit == "memory"
    slow = Device("slow", {"float32": 1.0}, 1e9, "measured", "")
    assert compute_bound_from(LayerShape(64, 64, 1, 1), slow, dtype="float32") == 1


def test_sparse_layers_need_about_experts_over_top_k_times_the_batch():
    shape = SHAPES["Qwen3-30B-A3B"]
    sparse, dense = (compute_bound_from(one, DEVICES["H200"]) for one in (shape, shape.dense))
    assert sparse / dense == pytest.approx(128 / 8, rel=0.01)


@pytest.mark.parametrize("max_over_mean", [1, 2.5, 4])
def test_each_expert_alone(max_over_mean):
    shape, tokens = LayerShape(32, 16, 8, 2), 20
    alone = each_expert(shape, tokens, max_over_mean=max_over_mean)
    chances = popularity(8, 2, max_over_mean)
    woken = [1 - (1 - chance) ** tokens for chance in chances]
    rows = np.array([rows for rows, _ in alone])
    assert rows.min() >= 1 and (rows * woken).sum() == pytest.approx(tokens * 2)
    for one, cost in alone:
        assert cost.flops == pytest.approx(6 * one * 32 * 16) and cost.weight_bytes == 2 * 3 * 32 * 16
        assert cost.token_bytes == pytest.approx(2 * 2 * one * 32)
    assert [cost.intensity for _, cost in alone] == sorted((cost.intensity for _, cost in alone), reverse=True)


def test_one_expert_that_gets_everything_leaves_defined_rows():
    alone = each_expert(LayerShape(8, 8, 4, 1), 1000, max_over_mean=4)
    assert [round(rows, 6) for rows, _ in alone] == [1000, 1, 1, 1]


def test_data_sheets_are_marked_and_dense():
    assert set(DEVICES) == {"H200", "H100 SXM", "A100 80GB", "MI300X", "T4"}
    for name, device in DEVICES.items():
        assert device.name == name and device.kind == "data sheet" and ("data sheet" in device.source or name == "T4")
        assert device.flops_per_s["float32"] < device.flops_per_s["float16"]
    assert "bfloat16" not in DEVICES["T4"].flops_per_s
    assert DEVICES["H200"].ridge("bfloat16") == pytest.approx(206.1, abs=0.05)
    assert DEVICES["H100 SXM"].ridge("bfloat16") == pytest.approx(295.3, abs=0.05)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: expert_cost(SHAPES["DeepSeek-V3"], 0), ValueError, "tokens must be at least 1, got 0"),
        (lambda: expert_cost(LayerShape(4, 4, 2, 1), 2.0), TypeError, "tokens must be a whole number"),
        (
            lambda: expert_cost(TOY_LAYER, 2, direction="backward"),
            ValueError,
            "direction must be one of forward, train",
        ),
        (lambda: expert_cost(TOY_LAYER, 2, dtype="float8"), ValueError, r"dtype must be one of bfloat16, .* 'float8'"),
        (lambda: expert_cost(TOY_LAYER, 2, load=torch.tensor([1, 1, 1])), ValueError, r"load must be \(2,\)"),
        (lambda: expert_cost(TOY_LAYER, 2, load=torch.tensor([0, 0])), ValueError, "load must have at least 1"),
        (
            lambda: expert_cost(TOY_LAYER, 2, load=torch.tensor([3, 0])),
            ValueError,
            "at most 2 rows, 2 an expert, got 3",
        ),
        (lambda: expert_cost(TOY_LAYER, 2, load=torch.tensor([1.0, 1])), TypeError, "load must be a tensor of whole"),
        (lambda: expert_cost(TOY_LAYER, 2, max_over_mean=3), ValueError, r"max_over_mean must lie in 1\.\.2"),
        (lambda: popularity(8, 2, 0.5), ValueError, r"max_over_mean must lie in 1\.\.4 .*, got 0.5"),
        (lambda: popularity(8, 9), ValueError, r"top_k must be in 1\.\.8, got 9"),
        (lambda: LayerShape(4, 0, 2, 1), ValueError, "d_expert must be at least 1, got 0"),
        (lambda: LayerShape(4, 4, 2, 3), ValueError, r"top_k must be in 1\.\.2, got 3"),
        (
            lambda: attainable(expert_cost(TOY_LAYER, 2), TOY, "float16"),
            ValueError,
            "must be one of float32, bfloat16 on",
        ),
        (lambda: Device("x", {}, 1.0, "measured", ""), ValueError, "at least one dtype, got none"),
        (lambda: Device("x", {"int8": 1.0}, 1.0, "measured", ""), ValueError, "dtype must be one of"),
        (lambda: Device("x", {"float32": 0.0}, 1.0, "measured", ""), ValueError, r"flops_per_s\['float32'\] must be"),
        (
            lambda: Device("x", {"float32": 1.0}, -1.0, "measured", ""),
            ValueError,
            "bytes_per_s must be a finite number",
        ),
        (
            lambda: Device("x", {"float32": 1.0}, 1.0, "guessed", ""),
            ValueError,
            "kind must be one of measured, data sh",
        ),
        (
            lambda: best_rates([("float32", 1.0, None, 1.0)]),
            ValueError,
            "a product and a copy, got 1 dtypes, 0.0 bytes",
        ),
        (lambda: measure_products("int8"), ValueError, "dtype must be one of"),
        (lambda: measure_products("float32", sizes=[0]), ValueError, "sizes must be at least 1, got 0"),
        (lambda: measure_products("float32", seconds=0), ValueError, "seconds must be a finite number above 0, got 0"),
        (lambda: measure_products("float32", repeats=0), ValueError, "repeats must be at least 1, got 0"),
        (lambda: measure_copies(4), ValueError, "copy_bytes must be at least 8, got 4"),
    ],
)
def test_refuses(call, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        call()


TOY_LAYER = LayerShape(4, 4, 2, 1)


def record(folder, device, started, rate, suite="ceilings", driver=None):
    rows = [
        {"implementation": "matrix product", "dtype": "float32", "flops": 2_000, "bytes": None, "ms_p50": ms}
        for ms in (4 / rate, 2 / rate)
    ]
    rows.append({"implementation": "copy", "dtype": "float32", "flops": None, "bytes": 500, "ms_p50": 1.0})
    run = {"suite": suite, "device": device, "started": started, "threads": 2, "driver": driver}
    path = folder / f"{suite}-{device}-{started[:10]}.json"
    write_json(path, {"run": run, "rows": rows})
    return path


def test_a_measured_device_is_its_newest_record(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline.devices, "RECORDS", tmp_path)
    assert measured_devices() == []
    with pytest.raises(FileNotFoundError, match="python -m moe_lab bench ceilings"):
        measured_device()
    old = record(tmp_path, "b", "2026-01-02T00:00:00Z", 1)
    record(tmp_path, "a", "2026-01-03T00:00:00Z", 2)
    record(tmp_path, "b", "2026-01-04T00:00:00Z", 3, driver="12.8")
    record(tmp_path, "c", "2026-01-05T00:00:00Z", 4, suite="routers")
    newest = measured_device()
    assert (newest.name, newest.kind, newest.source) == ("b, 2026-01-04", "measured", "ceilings-b-2026-01-04.json")
    assert newest.flops_per_s == {"float32": pytest.approx(3e6)} and newest.bytes_per_s == 500e3
    assert [one.name for one in measured_devices()] == ["b, 2026-01-04", "a, 2 threads, 2026-01-03"]
    assert measured_device(old).flops_per_s == {"float32": pytest.approx(1e6)}
    with pytest.raises(ValueError, match="must be a record of the suite ceilings, it is of 'routers'"):
        measured_device(tmp_path / "routers-c-2026-01-05.json")


def test_what_is_measured_counts_its_work_and_is_right():
    found = measure_ceilings(sizes=(48, 64), copy_bytes=2**12, repeats=2)
    products, copies = found[:-2], found[-2:]
    assert [(one.dtype, one.shape["size"]) for one in products] == list(itertools.product(BYTES, (48, 64)))
    assert all(one.flops == 2 * one.shape["size"] ** 3 and one.bytes is None for one in products)
    assert [(one.bytes, one.flops) for one in copies] == [(2**13, None), (2**12, None)]
    assert all(one.error <= one.tolerance and one.timing.repeats == 2 for one in found)
    assert all(one.error > 0 for one in products), "compared with float64, no product is exact"


def test_products_grow_while_they_keep_within_the_budget(monkeypatch):
    """On a machine of 1e12 FLOP/s, and float16 ten thousand times slower."""
    asked = []

    def pretend(dtype, size):
        asked.append((dtype, size))
        return (dtype, size), 0.0

    def time_them(functions, **options):
        rate = {"float16": 1e8}
        times = {name: 2e3 * size**3 / rate.get(dtype, 1e12) for name, (dtype, size) in functions.items()}
        return {name: Timing(ms, ms, ms, 9) for name, ms in times.items()}

    monkeypatch.setattr(roofline.ceilings, "_product", pretend)
    monkeypatch.setattr(roofline.ceilings, "time_interleaved", time_them)
    found = measure_products("float32", seconds=1.0)  # 100 ms a call: 2 * 2048^3 takes 17, 4096 would take 137
    assert [one.shape["size"] for one in found] == [512, 1024, 2048] and max(asked) == ("float32", 2048)
    assert [one.shape["size"] for one in measure_products("float32", seconds=1e4)] == [2048, 4096, 8192]
    assert measure_products("float16", seconds=1.0) == []
