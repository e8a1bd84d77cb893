"""What fuzzing found, one plain case each: bad input that ended in another error than a documented one, or in none."""

import json
from dataclasses import asdict

import pytest
import torch
from moe_lab.kernels.combine import combine
from moe_lab.kernels.decode_up import decode_up
from moe_lab.kernels.grouped_gemm import grouped_gemm
from moe_lab.kernels.grouped_up import grouped_up
from moe_lab.kernels.permute import permute
from moe_lab.kernels.sort_tokens import sort_tokens
from moe_lab.kernels.topk_gate import topk_gate

from moe_lab import MoE, Routing, expert_mlp, route
from moe_lab.checks import check_number, check_whole
from moe_lab.dispatch import assign_places, one_hot_flops
from moe_lab.hf.inspection import inside
from moe_lab.roofline import LayerShape, experts_hit

from .formats import FORMATS, TINY, prepare, try_bytes

LONG = 10**5000  # Python refuses to write out so many digits, with a ValueError of its own
X, WEIGHTS = torch.zeros(3, 4), torch.zeros(2, 6, 4)
ROUTING = Routing(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), 2)
TABLE = sort_tokens(ROUTING.experts, 2, 16)
ROWS = torch.zeros(TABLE.row_assignment.numel(), 4)
CALLS = {
    "a number too long to write": (lambda: check_whole("top_k", LONG, 1, 4), ValueError, "top_k must be in 1..4"),
    "a bound too long to write": (lambda: check_whole("top_k", 0, 1, LONG), ValueError, "top_k must be in 1..a whole"),
    "a float too long to write": (lambda: check_number("scale", LONG), ValueError, "scale must be a finite number"),
    "a size too long to write": (lambda: one_hot_flops(1, -LONG, 1, 1), ValueError, "num_experts must be a whole"),
    "a capacity beyond int64": (lambda: assign_places(ROUTING, LONG), ValueError, "capacity must be at most"),
    "tokens beyond floats": (lambda: experts_hit(10**400, 4, 2), ValueError, "tokens must be at most"),
    "a width beyond floats": (lambda: LayerShape(10**400, 2, 4, 2), ValueError, "d_model must be at most"),
    "a layer beyond int64": (lambda: MoE(2**70, 3, 4, 2), ValueError, "d_model must be at most"),
    "experts beyond int32": (lambda: Routing(ROUTING.experts, ROUTING.weights, 2**31), ValueError, "num_experts must"),
    "a method that has no hash": (lambda: route(X, 1, []), ValueError, "method must be one of"),
    "iterations beyond int64": (lambda: route(X, 1, "balanced", iterations=2**70), ValueError, "iterations must be"),
    "iterations of sinkhorn": (lambda: route(X, 1, "sinkhorn", iterations=2**70), ValueError, "iterations must be"),
    "a group beyond int64": (lambda: route(X, 1, "balanced_causal", group_size=2**70), ValueError, "group_size must"),
    "a flag that is a word": (lambda: route(X, 2, "gshard", random_second="no"), TypeError, "random_second must be"),
    "sparse weights": (
        lambda: expert_mlp(X, ROUTING, WEIGHTS.to_sparse(), torch.zeros(2, 4, 3)),
        TypeError,
        "w_gate_up must be a dense tensor",
    ),
    "rows without columns": (lambda: combine(ROWS[0], TABLE.assignment_row), ValueError, "rows must have 2 dimensions"),
    "no tensor": (lambda: permute(None, TABLE, 16), TypeError, "x must be a torch.Tensor, got NoneType"),
    "logits that are a list": (lambda: topk_gate([[0.0]], 1), TypeError, "logits must be a torch.Tensor, got list"),
    "one matrix for all experts": (
        lambda: grouped_gemm(ROWS, WEIGHTS[0], TABLE.tile_expert, TABLE.num_tiles, 16),
        ValueError,
        "w must have 3 dimensions",
    ),
    "matrices for fewer experts than rows name": (
        lambda: grouped_up(ROWS, WEIGHTS[:1], ROUTING.weights, TABLE, 16),
        ValueError,
        "w must have 2 experts, as the table says; got 1",
    ),
    "weights on another device": (
        lambda: decode_up(X, WEIGHTS, ROUTING.experts, ROUTING.weights.to("meta")),
        ValueError,
        "weights is on meta and x on cpu",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    call, error, says = CALLS[name]
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)


def whole(name):
    return json.loads(FORMATS[name].wholes()[0])


def with_row(name, **fields):
    value = whole(name)
    value["rows"][0] |= fields
    return json.dumps(value).encode()


def with_field(name, **fields):
    return json.dumps(whole(name) | fields).encode()


def without(name, outer, inner):
    value = whole(name)
    del value[outer][inner]
    return json.dumps(value).encode()


FILES = {
    "a time that is text": ("bench record", lambda: with_row("bench record", ms_p50="fast")),
    "a time of 0": ("bench record", lambda: with_row("bench record", ms_p50=0)),
    "a shape that is text": ("bench record", lambda: with_row("bench record", shape="4")),
    "a dtype that is a list": ("bench record", lambda: with_row("bench record", dtype=[])),
    "an error without a tolerance": ("bench record", lambda: with_row("bench record", tolerance=None)),
    "a run that does not say its driver": ("bench record", lambda: without("bench record", "run", "driver")),
    "ceilings of no device": ("ceilings", lambda: without("ceilings", "run", "device")),
    "ceilings of a run that is text": ("ceilings", lambda: with_field("ceilings", run="x")),
    "ceilings in no dtype": ("ceilings", lambda: with_row("ceilings", dtype=None)),
    "ceilings in no time": ("ceilings", lambda: with_row("ceilings", ms_p50=0)),
    "spills that are text": ("machine code", lambda: with_row("machine code", spill_bytes="few")),
    "no matrix instructions at all": ("machine code", lambda: with_row("machine code", matrix_ops=None)),
    "a grid whose machine is text": ("training record", lambda: with_field("training record", machine="fast")),
    "a race without configs": ("training record", lambda: with_field("training record", race=[{"loss": 1.0}])),
    "a call that took text": (
        "trace",
        lambda: json.dumps({**whole("trace"), "otherData": whole("trace")["otherData"] | {"call_us": "x"}}).encode(),
    ),
    "a watch of nothing": ("watch", lambda: with_field("watch", about=[])),
    "a kernel whose name is a list": (
        "proton",
        lambda: json.dumps(
            [{"frame": {"name": ["a"]}, "metrics": {"time (ns)": 1, "count": 1}, "children": []}]
        ).encode(),
    ),
    "a validation that is a number": ("history", lambda: with_field("history", validation=3)),
    "digits without end": ("training config", lambda: b'{"steps": ' + b"9" * 5000 + b"}"),
    "layers without end": ("model config", lambda: json.dumps(asdict(TINY) | {"num_layers": 2**20}).encode()),
    "a context without end": ("model config", lambda: json.dumps(asdict(TINY) | {"context": 2**20}).encode()),
    "a file name without end": ("index", lambda: with_field("index", weight_map={"a": "9" * 5000 + ".safetensors"})),
    "a file name with a zero byte": ("index", lambda: with_field("index", weight_map={"a": "\0.safetensors"})),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    form, content = FILES[name]
    try_bytes(form, content(), prepare(form, tmp_path), must="refuse")


@pytest.mark.parametrize("text", [b"[" * 10**5, b'{"00.1": ' + b"9" * 5000 + b"}", b"\xff"])
def test_no_progress_file_stands_between_a_reader_and_a_lesson(text, tmp_path):
    try_bytes("progress", text, prepare("progress", tmp_path))


def test_a_setting_that_no_model_can_have_is_named_with_its_file(tmp_path):
    prepare("model config", tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: method must be one of"):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(asdict(TINY) | {"method": "best"}))
        FORMATS["model config"].read(path)


def test_a_link_that_leads_to_itself_is_refused(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no file that could be read as 'model\.safetensors'"):
        inside(tmp_path, "model.safetensors")
