"""Every family with Transformers' experts interface under a watch: not one bit changes, and no assignment is missed."""

import pytest
import torch

from moe_lab import hf

from .test_experts_implementation import FAMILIES

TOKENS = torch.arange(12).expand(2, 12)
ROUTER_LOGITS = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss")


def forward(model, **options):
    written = {"decoder_input_ids": TOKENS[:, :7]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(TOKENS, use_cache=False, **written, **options)


def logits_of(answer):
    return getattr(answer, "logits", answer)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_bit_changes_and_every_assignment_is_seen(model_type, small_config, build, monkeypatch):
    model = build(small_config(model_type), "cpu", attn_implementation="eager").eval()
    want = logits_of(forward(model))
    seen = hf.watch(model)
    counts = {}

    def count(path, experts, x, top_k_index, top_k_weights):
        """A loop beside the experts' own: which experts each token is sent to."""
        for row in top_k_index.tolist():
            for expert in row:
                counts.setdefault(path, [0] * experts.num_experts)[expert] += 1
        return type(experts).forward(experts, x, top_k_index, top_k_weights)

    for path, experts in hf.experts.experts_of(model).items():
        monkeypatch.setattr(experts, "forward", lambda *given, path=path, ours=experts: count(path, ours, *given))
    with seen:
        got = logits_of(forward(model))
    assert torch.equal(got, want)
    assert counts == {layer.name: layer.load.tolist() for layer in seen.layers if layer.calls}
    assert seen.token_ids.equal(TOKENS.reshape(-1))
    for layer in seen.layers:
        if layer.calls:  # a text and the same text: rows that were not in the order of the ids would differ
            assert layer.experts[:12].equal(layer.experts[12:]) and len(layer.experts) == layer.tokens == 24


@pytest.mark.parametrize("model_type", ROUTER_LOGITS)
def test_loads_are_those_of_the_router_logits(model_type, small_config, build):
    model = build(small_config(model_type), "cpu", attn_implementation="eager").eval()
    with hf.watch(model) as seen:
        answer = forward(model, output_router_logits=True)
    assert len(answer.router_logits) == len(seen.layers)
    for layer, logits in zip(seen.layers, answer.router_logits, strict=True):
        chosen = logits.reshape(24, -1).topk(layer.top_k).indices
        assert layer.experts.sort().values.equal(chosen.sort().values)
        assert layer.load.equal(torch.bincount(chosen.reshape(-1), minlength=layer.num_experts))


def test_a_family_without_the_interface_is_refused_by_the_name_of_its_class(small_config, build):
    with pytest.raises(ValueError, match=r"got Llama4ForCausalLM: Llama4TextExperts, .*without the experts interface"):
        hf.watch(build(small_config("llama4_text"), "meta"))
