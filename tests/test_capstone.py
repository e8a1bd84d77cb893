"""The capstone's grader: it counts as the lab counts, every brief can be met, and nothing gets past it."""

import json
from dataclasses import replace

import pytest

import moe_lab as ml
from moe_lab.__main__ import main
from moe_lab.capstone import (
    AT_LEAST,
    AT_MOST,
    BRIEFS,
    Design,
    awake_share,
    count_design,
    decode_floor,
    device_bytes,
    grade,
    laptop_design,
    memory,
    place_design,
    prefill_floor,
    read_design,
    route_tokens,
    spread,
    write_design,
)
from moe_lab.parallel.simulator import Wire, step_time
from moe_lab.roofline import LayerShape, attainable, expert_cost

from .mutants.answers_15 import ALSO_RIGHT, RIGHT, for_gpu, for_nodes

REFERENCE = {"laptop": laptop_design, "gpu": RIGHT["15.3"], "nodes": RIGHT["15.4"]}


@pytest.fixture(scope="module")
def reports():
    return {name: grade(make(), BRIEFS[name]) for name, make in REFERENCE.items()}


# ---------------------------------------------------------------- every brief can be met, and each binds elsewhere


@pytest.mark.parametrize(
    ("brief", "binds"), [("laptop", "decode_ms"), ("gpu", "memory_bytes"), ("nodes", "exchange_bytes")]
)
def test_a_brief_can_be_met_and_one_budget_is_tight(reports, brief, binds):
    report = reports[brief]
    assert report.passed and report.broken == [] and report.binds == binds
    assert report.row(binds).used > 0.9
    assert [row.budget for row in report.rows] == list(BRIEFS[brief].budgets)


@pytest.mark.parametrize(("brief", "exercise"), [("gpu", "15.3"), ("nodes", "15.4")])
def test_a_brief_can_be_met_in_another_way(brief, exercise):
    assert grade(ALSO_RIGHT[exercise](), BRIEFS[brief]).passed


@pytest.mark.parametrize(
    ("make", "brief", "broken"),
    [
        (lambda: laptop_design(num_experts=128), "laptop", {"memory_bytes"}),
        (lambda: laptop_design(num_experts_per_tok=24), "laptop", {"decode_ms"}),
        (lambda: laptop_design(moe_intermediate_size=256), "laptop", {*AT_LEAST}),
        (lambda: replace(laptop_design(), dtype="float32"), "laptop", {"memory_bytes", "decode_ms", "prefill_ms"}),
        (lambda: replace(laptop_design(), dtype="float16"), "laptop", {"decode_ms", "prefill_ms"}),
        (for_gpu({"num_key_value_heads": 4}), "gpu", {"memory_bytes", "decode_ms"}),
        (for_gpu({"moe_intermediate_size": 512}), "gpu", {*AT_LEAST}),
        (for_gpu({"num_attention_heads": 64}), "gpu", {"flops_per_token", "prefill_ms"}),
        (for_nodes({"num_experts": 320}), "nodes", {"memory_bytes", "decode_ms"}),
        (for_nodes({"num_experts_per_tok": 16}), "nodes", {"flops_per_token", "prefill_ms"}),
        (for_nodes({"hidden_size": 4096, "moe_intermediate_size": 1824}), "nodes", {"exchange_bytes", "exchange_ms"}),
        (for_nodes(extra_experts=0), "nodes", {"busiest_over_mean", "prefill_ms", "exchange_ms"}),
        (for_nodes(devices=8), "nodes", {"memory_bytes", "decode_ms"}),
        (for_nodes(method="sinkhorn"), "nodes", {"causal"}),
        (for_gpu(method="expert_choice"), "gpu", {"no token dropped", "causal"}),
        (for_gpu({"use_sliding_window": True, "sliding_window": 512}), "gpu", {"whole context"}),
    ],
)
def test_a_neighbour_breaks_what_it_should(make, brief, broken):
    assert set(grade(make(), BRIEFS[brief]).broken) == broken


def test_shared_experts_are_paid_for():
    """Beside a hundred experts that everybody visits the routed ones would be for show."""
    few, many = (grade(Design({**GLM, "n_shared_experts": n}), BRIEFS["laptop"]) for n in (1, 100))
    for budget in ("flops_per_token", "memory_bytes", "decode_ms", "prefill_ms"):
        assert many.row(budget).used > 3 * few.row(budget).used and budget in many.broken


GLM = {
    "model_type": "glm4_moe",
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "n_routed_experts": 32,
    "moe_intermediate_size": 512,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
}


# ---------------------------------------------------------------- the numbers are the lab's


def test_the_counts_are_those_of_count():
    design, brief = laptop_design(), BRIEFS["laptop"]
    counts, report = ml.count(design.config, embeddings="none"), grade(design, brief)
    assert report.row("flops_per_token").yours == counts.flops_per_token(brief.context)
    assert report.row("active_params").yours == counts.active_params
    embeddings = 2 * brief.vocab_size * 1024
    assert report.row("total_params").yours == counts.total_params - embeddings
    cache = counts.kv_cache_bytes(brief.context, "bfloat16")
    assert report.row("memory_bytes").yours == counts.bytes("bfloat16") + cache


def test_bytes_on_a_device_by_hand():
    """8 experts of 30 numbers and 100 more; 12 places on 4 devices: 3 experts each."""
    assert device_bytes(340, 240, 8, 12, 4, 2, 50) == 2 * (100 + 90) + 50
    design, brief = for_nodes()(), BRIEFS["nodes"]
    counts = count_design(design)
    experts = counts.params_by_component["experts"]
    by_hand = 2 * (counts.total_params - experts + experts * 12 // 160)
    assert memory(design, counts, brief) == by_hand + counts.kv_cache_bytes(8192, "bfloat16", sequences=32)


@pytest.mark.parametrize("floor", [decode_floor, prefill_floor])
def test_the_floor_of_experts_is_the_rooflines(floor):
    """Layers times `expert_cost` but for the tokens' own bytes, which the experts of a floor do not read."""
    design, brief = laptop_design(), BRIEFS["laptop"]
    tokens = brief.prompt if floor is prefill_floor else brief.sequences
    cost = expert_cost(LayerShape(1024, 512, 64, 12), tokens)
    expected = 16 * attainable(replace(cost, token_bytes=0.0), brief.device).time_ms
    found = floor(design, count_design(design), brief)
    assert found.experts.time_ms == pytest.approx(expected)
    assert found.ms == pytest.approx(found.rest.time_ms + expected)


def test_decoding_alone_reads_what_is_active():
    """One sequence wakes top_k experts: all that is read are the active parameters, the output matrix and the cache."""
    design, brief = laptop_design(), BRIEFS["laptop"]
    counts = count_design(design)
    read = 2 * (counts.active_params + 1024 * brief.vocab_size) + counts.kv_cache_bytes(brief.context, "bfloat16")
    assert decode_floor(design, counts, brief).ms == pytest.approx(1e3 * read / brief.device.bytes_per_s)
    assert awake_share(design, counts, 1) == pytest.approx(12 / 64)


def test_a_tied_output_is_read_and_stored_once():
    tied, own = laptop_design(tie_word_embeddings=True), laptop_design()
    brief = BRIEFS["laptop"]
    floors = [decode_floor(design, count_design(design), brief).ms for design in (tied, own)]
    assert floors[0] == pytest.approx(floors[1])
    stored = [memory(design, count_design(design), brief) for design in (tied, own)]
    assert stored[1] - stored[0] == 2 * 1024 * brief.vocab_size


def test_exchanges_are_the_simulators():
    design, brief = for_nodes()(), BRIEFS["nodes"]
    counts = count_design(design)
    placement = place_design(design, counts, brief)
    routed = route_tokens(design, counts, 64, seed=1)
    parts = [placement.route(part, start=rank) for rank, part in enumerate(routed)]
    shape, wire = LayerShape(3072, 2432, 192, 8), Wire.of_exchange(3072, 8, 2, 4)
    step, found = step_time(parts, brief.cluster, shape, wire), spread(design, counts, brief, 64, placement)
    assert found.exchange_ms == step.exchange_ms
    rows = sum(part.load for part in parts).view(16, -1).sum(dim=1).double()
    assert found.busiest_over_mean == float(rows.max() / rows.mean())
    bytes_by_hand = sum(float(one.between_ms.max()) for one in step.exchanges) * 50e6
    assert found.between_bytes == pytest.approx(bytes_by_hand)
    assert max(int(part.load.sum()) for part in parts) == 64 * 8


def test_one_node_sends_nothing_between_nodes():
    report = grade(for_nodes(devices=8)(), BRIEFS["nodes"])
    assert report.row("exchange_bytes").yours == 0 < report.row("exchange_ms").yours


def test_every_prediction_says_so():
    for row in grade(for_nodes()(), BRIEFS["nodes"]).rows:
        times = row.budget.endswith("_ms") or row.budget.startswith("exchange")
        assert (row.kind == "predicted") == times, row.budget


@pytest.mark.parametrize("method", ["hash", "random", "noisy_top_k", "grouped_experts", "sigmoid_bias"])
def test_every_kind_of_router_can_be_graded(method):
    options = {"num_groups": 4} if method == "grouped_experts" else {}
    first, again = (grade(laptop_design_with(method, options), BRIEFS["laptop"]).rows for _ in range(2))
    assert first == again and all(row.met for row in first)


def laptop_design_with(method, options):
    return Design(laptop_design().config, method, options)


# ---------------------------------------------------------------- no design cheats


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_experts": -64}, "num_experts must be at least 1, got -64"),
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"num_experts": 64.0}, "num_experts must be a whole number"),
        ({"num_experts_per_tok": 65}, "num_experts_per_tok must be in 1..64, got 65"),
        ({"hidden_size": -1024}, "hidden_size must be at least 1"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size must be at least 1"),
        ({"num_hidden_layers": 2**30}, "num_hidden_layers must be at most 1,000"),
        ({"num_experts": 4096}, "experts must be at most 1,024 a layer"),
        ({"num_local_experts": 8}, "num_local_experts must equal num_experts=64"),
        ({"torch_dtype": "float32"}, "dtype must be what the config says, 'float32'; got 'bfloat16'"),
        ({"vocab_size": 1000}, "vocab_size must be 32,000"),
        ({"max_position_embeddings": 512}, "max_position_embeddings must be at least 2,048"),
        ({"decoder_sparse_step": 99}, "every layer with experts must have equally many"),
        ({"model_type": "mixtrale"}, "model_type='mixtrale' is no family"),
        ({"n_group": 8}, "num_groups must be the config's n_group=8"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_its_field(config, says):
    with pytest.raises((ValueError, TypeError)) as refused:
        grade(laptop_design(**config), BRIEFS["laptop"])
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int4"}, "dtype must be one of"),
        ({"method": "magic"}, "method must be one of"),
        ({"method": "switch"}, "top_k must be 1 for method 'switch'"),
        ({"method": "group_limited"}, "needs the option num_groups"),
        ({"options": {"num_groups": 2}}, "'num_groups' is no option of method 'top_k'"),
        ({"options": {"generator": 1}}, "generator comes with the batch"),
        ({"options": []}, "options must be a dict"),
        ({"config": "mixtral-8x7b"}, "config must be a dict"),
        ({"devices": 2}, "devices must be at most 1"),
        ({"devices": 0}, "devices must be at least 1"),
        ({"extra_experts": -1}, "extra_experts must be at least 0"),
        ({"extra_experts": True}, "extra_experts must be a whole number"),
    ],
)
def test_a_design_that_makes_no_sense_is_refused_by_its_field(options, says):
    with pytest.raises((ValueError, TypeError)) as refused:
        grade(Design(**{"config": laptop_design().config, **options}), BRIEFS["laptop"])
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"devices": 32}, "devices must be at most 16"),
        ({"devices": 12, "extra_experts": 8}, "devices must fill whole nodes of 8, got 12"),
        ({"extra_experts": 5}, "devices must divide the places of a layer, 160 experts + 5 extra_experts; got 16"),
    ],
)
def test_devices_that_do_not_fit_are_refused(options, says):
    with pytest.raises(ValueError) as refused:
        grade(for_nodes(**options)(), BRIEFS["nodes"])
    assert says in str(refused.value)


def test_a_model_without_experts_is_none():
    with pytest.raises(ValueError, match="equally many of them, at least one; got none"):
        grade(laptop_design(mlp_only_layers=list(range(16))), BRIEFS["laptop"])


def test_a_large_vocabulary_is_no_experts():
    """An embedding is stored, and costs no FLOPs: it must not count for what experts are asked for."""
    brief = replace(BRIEFS["laptop"], vocab_size=1_000_000)
    report = grade(laptop_design(vocab_size=1_000_000, num_experts=32), brief)
    assert "total_params" in report.broken


# ---------------------------------------------------------------- briefs, reports, the command


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"devices": 2}, "cluster must have room for devices=2"),
        ({"memory_bytes": 0}, "memory_bytes must be a finite number above 0"),
        ({"decode_ms": float("nan")}, "decode_ms must be a finite number above 0"),
        ({"context": 0}, "context must be at least 1"),
        ({"exchange_ms": 3.0}, "must be None for one device"),
    ],
)
def test_a_brief_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ValueError) as refused:
        replace(BRIEFS["laptop"], **change)
    assert says in str(refused.value)


def test_a_report_says_the_same_in_text_html_and_json(reports):
    report = grade(for_nodes(extra_experts=0)(), BRIEFS["nodes"])
    found, text, page = json.loads(report.to_json()), repr(report), report._repr_html_()
    assert [row["budget"] for row in found["rows"]] == list(BRIEFS["nodes"].budgets)
    assert found["broken"] == report.broken and not found["passed"] and found["binds"] == "busiest_over_mean"
    for row in report.rows:
        assert f'<th scope="row" style="text-align:left;vertical-align:top">{row.budget}</th>' in page
        assert row.budget in text and row.margin in text and row.margin in page
    assert page.count('scope="col"') == 6 and "<caption" in page
    assert "no such model was run" in text and "What loss" in text and "What loss" in page
    assert [row.met for row in reports["nodes"].rows] == [True] * len(reports["nodes"].rows)


def test_margins_are_in_words():
    rows = {row.budget: row for row in grade(laptop_design(num_experts=128), BRIEFS["laptop"]).rows}
    assert rows["memory_bytes"].margin == "49% over" and rows["decode_ms"].margin == "6% left"
    assert rows["total_params"].margin.endswith("more") and rows["causal"].margin == "kept"
    assert rows["memory_bytes"].cells[3] == "NO"


def test_a_budget_that_the_brief_lacks_has_no_row(reports):
    with pytest.raises(ValueError, match=r"budget must be one of flops_per_token, .*got 'exchange_ms'"):
        reports["gpu"].row("exchange_ms")
    assert {*AT_MOST, *AT_LEAST} < {row.budget for row in reports["nodes"].rows}


def test_the_command_grades_a_file(tmp_path, capsys):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_design(laptop_design(), good)
    write_design(laptop_design(num_experts=128), bad)
    assert read_design(good) == laptop_design()
    assert main(["grade", str(good), "--brief", "laptop"]) == 0
    assert "the design passes" in capsys.readouterr().out
    assert main(["grade", str(bad), "--brief", "laptop", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["broken"] == ["memory_bytes"]


@pytest.mark.parametrize(
    ("text", "brief", "says"),
    [
        ("[]", "laptop", "must hold a JSON object"),
        ("{}", "laptop", "config is missing"),
        ('{"config": {}, "router": 1}', "laptop", "'router' is no field of a design"),
        ('{"config": {}}', "laptop", "model_type is missing"),
        ('{"config": {}}', "phone", "--brief must be one of laptop, gpu, nodes; got 'phone'"),
    ],
)
def test_the_command_refuses_by_name(tmp_path, capsys, text, brief, says):
    path = tmp_path / "design.json"
    path.write_text(text)
    assert main(["grade", str(path), "--brief", brief]) == 1
    assert says in capsys.readouterr().err
