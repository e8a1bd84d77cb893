import math

import pytest
import torch

from moe_lab.types import Routing
from moe_lab.widgets import RouteOneBatch
from moe_lab.widgets.route_one_batch import draw_logits

LOGITS = [[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]


def test_defaults_are_twelve_drawn_tokens():
    widget = RouteOneBatch()
    assert (len(widget.logits), len(widget.logits[0]), widget.top_k) == (12, 8, 2)
    assert widget.labels[0] == "token 0" and widget.labels[-1] == "token 11"
    assert widget.logits == RouteOneBatch().logits != RouteOneBatch(seed=1).logits


def test_routing_is_the_routers():
    widget = RouteOneBatch(LOGITS, top_k=2, temperature=0.5)
    assert isinstance(widget.routing, Routing)
    assert widget.routing.experts.tolist() == [[0, 2], [1, 0], [0, 1]]  # equal logits go to the lower expert
    whole = math.exp(4) + math.exp(0) + math.exp(2)
    torch.testing.assert_close(
        widget.routing.weights[0], torch.tensor([math.exp(4), math.exp(2)], dtype=torch.float64) / whole
    )


def test_the_score_changes_weights_and_not_experts():
    scores = [RouteOneBatch(LOGITS, score=score).routing for score in ("softmax", "sigmoid", "softmax_after_top_k")]
    for one in scores[1:]:
        assert torch.equal(one.experts, scores[0].experts)
        assert not torch.allclose(one.weights, scores[0].weights)
    assert torch.allclose(scores[2].weights.sum(1), torch.ones(3, dtype=torch.float64))


def test_renormalise_makes_each_token_weigh_one():
    widget = RouteOneBatch(LOGITS, score="sigmoid", renormalise=True)
    assert torch.allclose(widget.routing.weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert "by sigmoid, renormalised:" in widget.summary()


def test_a_colder_router_chooses_the_same_experts():
    cold, hot = (RouteOneBatch(temperature=temperature).routing for temperature in (0.1, 10.0))
    assert torch.equal(cold.experts, hot.experts)
    assert (cold.weights[:, 0] > hot.weights[:, 0]).all()


def test_a_small_change_of_one_logit_flips_an_expert():
    widget = RouteOneBatch([[1.0, 0.99, 0.0]], top_k=1)
    widget.logits = [[1.0, 1.01, 0.0]]
    assert widget.routing.experts.tolist() == [[1]]


def test_summary_names_the_idle_experts():
    widget = RouteOneBatch([[2.0, 1.0, 0.0, -1.0]] * 3)
    assert widget.summary().startswith(
        "3 tokens, top-2 of 4 experts by softmax: busiest expert 0 has 3 of 6 assignments, "
        "max over mean 2.00; experts 2 and 3 have none."
    )
    assert "7 experts have none" in RouteOneBatch([[float(e == 1) for e in range(8)]], top_k=1).summary()
    assert "expert 1 has none" in RouteOneBatch([[1.0, 0.0]], top_k=1).summary()


def test_repr_and_plain_text_are_the_summary():
    widget = RouteOneBatch()
    assert repr(widget) == f"RouteOneBatch: {widget.summary()}"
    data, _metadata = widget._repr_mimebundle_()
    assert data["text/plain"] == repr(widget)


def test_a_tensor_and_whole_numbers_are_logits_too():
    assert RouteOneBatch(torch.tensor([[1, 0], [0, 1]])).logits == [[1.0, 0.0], [0.0, 1.0]]
    assert RouteOneBatch(labels=["the", "cat"]).routing.tokens == 2


def test_more_experts_keep_the_old_columns_and_fewer_lower_top_k():
    widget = RouteOneBatch(top_k=4, seed=7)
    before = widget.logits
    widget.num_experts = 16
    assert [row[:8] for row in widget.logits] == before and widget.logits == draw_logits(7, 12, 16)
    widget.num_experts = 3
    assert widget.logits == [row[:3] for row in before] and widget.top_k == 3


def test_a_new_seed_draws_and_new_logits_bring_their_width():
    widget = RouteOneBatch(LOGITS, seed=3)
    assert widget.logits == LOGITS  # the seed did not draw over what was given
    widget.seed = 4
    assert widget.logits == draw_logits(4, 3, 3)
    widget.logits = [[1.0, 2.0]]
    assert widget.num_experts == 2


def test_drawn_logits_look_normal():
    drawn = torch.tensor(draw_logits(0, 64, 64), dtype=torch.float64)
    assert abs(drawn.mean()) < 0.05 and abs(drawn.std() - 1) < 0.05
    assert drawn.unique().numel() > 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 1}, r"num_experts must lie in 2\.\.64, got 1"),
        ({"num_experts": 65}, r"num_experts must lie in 2\.\.64, got 65"),
        ({"top_k": 0}, r"top_k must lie in 1\.\.8, got 0"),
        ({"num_experts": 4, "top_k": 5}, r"top_k must lie in 1\.\.4, got 5"),
        ({"score": "relu"}, "score must be one of softmax, sigmoid, softmax_after_top_k; got 'relu'"),
        ({"temperature": 0.0}, r"temperature must lie in 0\.05\.\.10\.0, got 0\.0"),
        ({"temperature": math.nan}, "temperature must lie in .* got nan"),
        ({"seed": -1}, "seed must lie in .* got -1"),
        ({"logits": [[1.0, math.inf]]}, "logits must be finite, got inf"),
        ({"logits": [[1.0], [2.0]]}, r"2 to 64 experts, got shape \(2, 1\)"),
        ({"logits": []}, r"logits must be \(tokens, experts\)"),
        ({"logits": [[1.0, 2.0], [3.0]]}, "logits must be a table of numbers"),
        ({"logits": [[1.0, 2.0]], "labels": ["a", "b"]}, "labels must be one for each of the 1 rows of logits, got 2"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RouteOneBatch(**options)


def test_bad_assignments_are_refused():
    widget = RouteOneBatch(LOGITS)
    with pytest.raises(ValueError, match=r"top_k must lie in 1\.\.3, got 4"):
        widget.top_k = 4
    with pytest.raises(ValueError, match="logits must be finite"):
        widget.logits = [[math.nan, 0.0]]
    assert (widget.top_k, widget.logits) == (2, LOGITS)
