"""Expert roofline in Python: its numbers are the roofline's, its traits fit together, what is not there is refused."""

import json
import math

import pytest
import traitlets

from moe_lab import roofline
from moe_lab.roofline import DEVICES, SHAPES, Device, LayerShape, attainable, compute_bound_from, expert_cost
from moe_lab.widgets import ExpertRoofline
from moe_lab.widgets.expert_roofline import say_rate, say_time, three_digits

CPU = Device("desk, 2 threads, 2026-01-02", {"bfloat16": 4e11, "float32": 1.6e11}, 3.2e10, "measured", "x.json")


def sizes(widget):
    return widget.d_model, widget.d_expert, widget.num_experts, widget.top_k


@pytest.mark.parametrize("direction", ["forward", "training"])
def test_bounds_are_the_rooflines(direction):
    widget = ExpertRoofline("A100 80GB", "DeepSeek-V3", 300, "float16", direction, skew=7)
    how = {"direction": direction, "dtype": "float16"}
    device, shape = DEVICES["A100 80GB"], SHAPES["DeepSeek-V3"]
    for one, skew in ((shape, 7), (shape.dense, 1)):
        cost = expert_cost(one, 300, max_over_mean=skew, **how)
        want = (
            cost.intensity,
            attainable(cost, device, "float16"),
            compute_bound_from(one, device, max_over_mean=skew, **how),
        )
        assert widget.bound(one) == want


def test_experts_are_limited_one_by_one():
    even = ExpertRoofline("H200", tokens=4096)
    assert even.by_memory() == 0 and ExpertRoofline("H200", tokens=512).by_memory() == 128
    assert 0 < ExpertRoofline("H200", tokens=4096, skew=7).by_memory() < 128


def test_summary_repr_and_plain_text():
    widget = ExpertRoofline(tokens=16, model="Mixtral 8x7B", skew=2.5, devices=[CPU])
    assert widget.summary() == (
        "Mixtral 8x7B on desk, 2 threads, 2026-01-02 (measured), bfloat16, forward: at 16 tokens an expert sees 4 rows "
        "on average, the busiest 10; 8 of 8 experts alone are limited by memory. Experts: 4.22 FLOP/byte, limited by "
        "memory, at most 135 GFLOP/s, at least 83.5 ms. Dense layer of equal FLOPs: 16 FLOP/byte, limited by compute, "
        "at most 400 GFLOP/s, at least 28.2 ms. Compute limits the experts from 50 tokens on, the dense layer from 13 "
        "tokens on."
    )
    assert repr(widget) == f"ExpertRoofline: {widget.summary()}"
    data, _metadata = widget._repr_mimebundle_()
    assert data["text/plain"] == repr(widget)


def test_words_for_one_and_for_never():
    one = ExpertRoofline("H200", LayerShape(64, 64, 1, 1), 1).summary()
    assert one.startswith(
        "Top-1 of 1 expert on H200 (data sheet), bfloat16, forward: at 1 token an expert sees 1 row on av"
    )
    assert one.endswith("Compute limits the experts at no number of tokens, the dense layer at no number of tokens.")
    slow = Device("slow", {"float32": 1.0}, 1e9, "measured", "x")
    assert (
        ExpertRoofline(devices=[slow]).summary().endswith("experts from 1 token on, the dense layer from 1 token on.")
    )


def test_no_expert_gets_more_than_every_token():
    widget = ExpertRoofline("H200", "Mixtral 8x7B", 64, skew=7)
    assert widget.max_over_mean == 4 and "the busiest 64 (every token)" in widget.summary()
    widget.num_experts = 2  # top-2 of 2: even, whatever was asked for
    assert widget.max_over_mean == 1 and "busiest" not in widget.summary()


def test_measured_machines_come_first(monkeypatch):
    monkeypatch.setattr("moe_lab.widgets.expert_roofline.measured_devices", lambda: [CPU])
    widget = ExpertRoofline()
    assert widget.device == CPU.name and widget.dtype == "bfloat16"
    assert [one["name"] for one in widget.devices] == [CPU.name, *DEVICES]
    assert [one["kind"] for one in widget.devices] == ["measured"] + ["data sheet"] * 5


def test_without_a_record_the_data_sheets_are_left(monkeypatch, tmp_path):
    monkeypatch.setattr(roofline.devices, "RECORDS", tmp_path)
    assert ExpertRoofline().device == "H200"


def test_traits_stay_together():
    widget = ExpertRoofline("H200", "Mixtral 8x7B")
    widget.model = "OLMoE-1B-7B"
    assert sizes(widget) == (2048, 1024, 64, 8)
    widget.num_experts = 4
    assert (widget.model, widget.top_k) == ("custom", 4)
    widget.model = "DeepSeek-V3"
    assert sizes(widget) == (7168, 2048, 256, 8) and widget.model == "DeepSeek-V3"
    widget.device = "T4"
    assert widget.dtype == "float16"
    widget.device = "H200"
    assert widget.dtype == "float16", "what the new device has is kept"
    assert ExpertRoofline("H200", "Mixtral 8x7B", num_experts=16).model == "custom"
    assert ExpertRoofline("H200", "Mixtral 8x7B", num_experts=8, top_k=2).model == "Mixtral 8x7B"


def test_a_message_from_the_browser_sets_all_at_once():
    widget = ExpertRoofline("H200", "Mixtral 8x7B")
    widget.set_state({"model": "gpt-oss-120b", "d_model": 2880, "d_expert": 2880, "num_experts": 128, "top_k": 4})
    assert (widget.model, *sizes(widget)) == ("gpt-oss-120b", 2880, 2880, 128, 4)
    widget.set_state({"device": "T4", "dtype": "float16", "skew": 7, "tokens": 2**20})
    assert (widget.device, widget.dtype, widget.skew, widget.tokens) == ("T4", "float16", 7.0, 2**20)
    widget.set_state({"num_experts": 2, "top_k": 2, "model": "custom"})
    assert (widget.model, *sizes(widget)) == ("custom", 2880, 2880, 2, 2)


def test_what_the_browser_gets_is_json():
    state = ExpertRoofline(devices=[CPU]).get_state()
    sent = json.loads(json.dumps({name: state[name] for name in ("devices", "models")}))
    assert sent["devices"][0]["flops_per_s"] == CPU.flops_per_s
    assert sent["models"]["Mixtral 8x7B"] == {"d_model": 4096, "d_expert": 14336, "num_experts": 8, "top_k": 2}


def test_numbers_in_words():
    assert [three_digits(value) for value in (0.03125, 2.125, 64, 999.5, 1.2345e6)] == [
        "0.0313",
        "2.13",
        "64",
        "1,000",
        "1,230,000",
    ]
    assert (say_rate(1e12), say_rate(999e9), say_rate(5e6)) == ("1 TFLOP/s", "999 GFLOP/s", "0.005 GFLOP/s")
    assert (say_time(0.0999), say_time(0.1), say_time(1000)) == ("99.9 µs", "0.1 ms", "1 s")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "B200"}, ValueError, r"device must be one of .*H200, .*; got 'B200'"),
        ({"model": "GPT-5"}, ValueError, r"model must be one of Mixtral 8x7B, .*; got 'GPT-5'"),
        ({"model": "custom"}, ValueError, r"model must be one of .*; got 'custom'"),
        ({"tokens": 0}, ValueError, r"tokens must be in 1\.\.1048576, got 0"),
        ({"tokens": 2.5}, TypeError, r"tokens must be a whole number, in 1\.\.1048576; got 2\.5"),
        (
            {"device": "T4", "dtype": "bfloat16"},
            ValueError,
            "dtype must be one of float16, float32 on T4, got 'bfloat16'",
        ),
        ({"direction": "backward"}, ValueError, "direction must be one of forward, training; got 'backward'"),
        ({"skew": 3}, ValueError, r"skew must be one of 1, 2\.5, 7; got 3"),
        ({"skew": math.nan}, ValueError, "skew must be a finite number, got nan"),
        ({"num_experts": 513}, ValueError, r"num_experts must be in 1\.\.512, got 513"),
        ({"num_experts": 4, "top_k": 5}, ValueError, r"top_k must be in 1\.\.4, got 5"),
        ({"num_experts": 4}, ValueError, r"top_k must be in 1\.\.4, got 8"),
        ({"top_k": 17}, ValueError, r"top_k must be in 1\.\.16, got 17"),
        ({"devices": []}, ValueError, "devices must be at least one"),
        ({"devices": [CPU, CPU]}, ValueError, "each with its own name"),
    ],
)
def test_bad_arguments_are_named(options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        ExpertRoofline(**options)


def test_bad_assignments_are_refused():
    widget = ExpertRoofline("T4", "Mixtral 8x7B")
    for name, value in (("device", "B200"), ("model", "GPT-5"), ("dtype", "bfloat16"), ("top_k", 9)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(widget, name, value)
    for name, value in (("tokens", 0), ("skew", 3.0), ("direction", "backward"), ("num_experts", 513)):
        with pytest.raises(traitlets.TraitError, match=f"'{name}' trait"):
            setattr(widget, name, value)
    assert (widget.device, widget.model, widget.dtype, widget.tokens) == ("T4", "Mixtral 8x7B", "float16", 64)
