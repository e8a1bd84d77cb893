"""The bug clinic: right functions obey every law, ill ones break one, symptoms tell them apart."""

import re

import pytest
import torch

import moe_lab as ml
from moe_lab.clinic import PATIENTS, costs, counting, gradients, indices, places
from moe_lab.clinic.patient import compare, favour, gradient, near, say
from moe_lab.losses import switch_aux


@pytest.mark.parametrize("patient", PATIENTS.values(), ids=PATIENTS.keys())
def test_right_functions_obey_every_law(patient):
    assert len(patient.healthy) >= 2 and len(patient.laws) >= 5
    for name, function in patient.healthy.items():
        assert patient.broken_laws(function) == {}, name


@pytest.mark.parametrize("patient", PATIENTS.values(), ids=PATIENTS.keys())
def test_every_wrong_function_breaks_a_law_and_every_law_is_broken(patient):
    broken = {name: patient.broken_laws(function) for name, function in patient.ill.items()}
    assert len(broken) >= 6 and all(broken.values()), broken
    laws = {law for faults in broken.values() for law in faults}
    unbroken = set(patient.laws) - laws  # what these guard against is not among the variants, but among the mutants
    assert unbroken <= {"whole numbers", "even loads move nothing"}


@pytest.mark.parametrize("patient", PATIENTS.values(), ids=PATIENTS.keys())
def test_a_symptom_says_other_numbers_of_the_healthy(patient):
    ill = patient.symptom(patient.sick)
    for function in patient.healthy.values():
        well = patient.symptom(function)
        assert re.findall(r"[\d.,]+", well) != re.findall(r"[\d.,]+", ill)
        assert well == patient.symptom(next(iter(patient.healthy.values()))), "healthy ones look alike"


@pytest.mark.parametrize("patient", PATIENTS.values(), ids=PATIENTS.keys())
def test_notes_have_title_threads_symptom_and_code(patient):
    head, symptom, rest = patient.notes().split("\n\n", 2)
    title, threads = head.split("\n")
    assert title == patient.title and threads.startswith("(") and threads.endswith(")")
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread) for thread in threads[1:-1].split(", "))
    assert symptom == patient.symptom(patient.sick)
    assert rest.strip().startswith(f"def {patient.sick.__name__}(") and len(rest.splitlines()) < 20
    assert max(map(len, rest.splitlines())) <= 120


def test_titles_and_threads_are_not_shared():
    assert len({patient.title for patient in PATIENTS.values()}) == len(PATIENTS) == 12
    threads = [thread for patient in PATIENTS.values() for thread in patient.threads]
    assert len(threads) == len(set(threads)) >= 20


# ---------------------------------------------------------------- numbers that the lesson leans on


def test_collapsed_layers_by_hand():
    assert "one by one: 8.00. Loss of all together: 1.00" in counting.HEAP.symptom(counting.HEAP.sick)


def test_assignments_counted_twice():
    batches = [torch.randn(5, 3, generator=torch.Generator().manual_seed(1))]
    once, twice = (counting.step_load(batches, 2, recompute) for recompute in (False, True))
    assert once.tolist() == ml.route(batches[0], 2).load.tolist() and twice.tolist() == (2 * once).tolist()


def test_bfloat16_cannot_add_one_to_256():
    counts = torch.tensor([[256, 256], [1, 0]])
    assert counting.new_bias(counts, torch.zeros(2), 1.0).tolist() == [0, 0]
    right = counting.ROUNDED.healthy["in whole numbers"]
    assert right(counts, torch.zeros(2), 1.0).tolist() == [-1, 1]


def test_three_to_one_by_hand():
    logits = gradients.THREE_TO_ONE
    assert float(switch_aux(logits, ml.route(logits, 1))) == pytest.approx(2.5, abs=1e-4)


def test_top_1_renormalised_teaches_nothing_and_two_do():
    assert gradients.router_gradient(gradients.weigh, 1).abs().max() < 1e-6
    assert gradients.router_gradient(gradients.weigh, 2).norm() > 0.5
    cured = gradients.ALWAYS_ONE.healthy["by the library"]
    assert gradients.router_gradient(cured, 1).norm() > 0.5


def test_padding_is_behind_the_text():
    logits, mask = places.pad([torch.ones(2, 3), 2 * torch.ones(1, 3)], 3, filling=9.0)
    assert logits[:, :, 0].tolist() == [[1, 1, 9], [2, 9, 9]] and mask.sum(dim=1).tolist() == [2, 1]


def test_flops_are_those_that_a_layer_takes():
    layer = ml.MoE(8, 6, num_experts=5, top_k=2)
    with ml.flop_counter() as counter, torch.no_grad():
        layer(torch.randn(7, 8, generator=torch.Generator().manual_seed(0)))
    assert costs.RESTING.healthy["the chosen experts"](7, 8, 99, 6, 5, 2) == counter.total_flops


def test_parameters_are_those_of_the_published_model():
    sizes = ml.count("qwen1.5-moe-a2.7b").params_by_component
    wanted = sizes["router"] + sizes["experts"] * 4 // 60 + sizes["shared_experts"]
    found = 24 * costs.TWIN.healthy["a formula"](*costs.QWEN.values())
    assert wanted - found in (0, 24 * 2048), "but for the gate of the shared expert"
    assert "2.69 billion" in costs.TWIN.symptom(costs.TWIN.healthy["a formula"])
    assert costs.twin_test(costs.active_params) and not costs.twin_test(costs.TWIN.healthy["a formula"])


def test_addresses_overflow_where_the_title_says():
    for tokens, fits in ((37_449, True), (37_450, False)):
        assert (indices.last_start(indices.row_starts, tokens) == (8 * tokens - 1) * 7168) == fits
        assert indices.last_start(indices.NARROW.healthy["widened first"], tokens) == (8 * tokens - 1) * 7168


# ---------------------------------------------------------------- tools


def test_near_wants_equal_shapes_and_no_nan():
    assert near(1.0, torch.tensor(1.0)) and not near(torch.ones(2), torch.ones(1))
    assert not near(float("nan"), float("nan"))
    assert compare(2, 3, "there: ") == "there: yours 2, spec 3"


def test_tables_are_said_by_their_values_if_few():
    assert say(torch.tensor([True, False])) == "[True, False]"
    assert say(torch.ones(3, 3)) == "(3, 3) numbers that sum to 9" and say(torch.tensor(0.12345)) == "0.1235"


def test_a_gradient_that_does_not_arrive_is_zero():
    logits = favour(0, 2, 3)
    assert not gradient(lambda one: one.detach().sum(), logits).any()
    assert not gradient(lambda one: 3.0, logits).any()
    assert gradient(lambda one: one.sum(), logits).eq(1).all()
