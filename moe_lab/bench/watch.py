"""Suite "watch": what watching the routing of a model costs, as a share of its forward pass."""

import copy

import torch
from torch import Tensor, nn

from moe_lab.bench.record import Case
from moe_lab.bench.rows import Measured, as_percentiles
from moe_lab.profiling import time_interleaved

LAYERS, EXPERTS, TOP_K, D_MODEL, D_EXPERT = 8, 64, 8, 256, 128
KEEPS = {"watched": 65536, "watched, loads only": 0}


def watch(quick: bool = False) -> list[Case]:
    """A text of 512 tokens, and one token behind it: a small model with OLMoE's layer, in float32, on the CPU."""
    sizes = (2, 4, 2, 16, 8) if quick else (LAYERS, EXPERTS, TOP_K, D_MODEL, D_EXPERT)
    length, repeats = (16, 3) if quick else (512, 101)
    return [
        Case("prefill", lambda seconds: overhead(make_model(*sizes), length, False, repeats, seconds)),
        Case("decode", lambda seconds: overhead(make_model(*sizes), length, True, 8 * repeats, seconds)),
    ]


def make_model(layers: int, num_experts: int, top_k: int, d_model: int, d_expert: int) -> nn.Module:
    """An OLMoE of these sizes with drawn weights."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    sizes = {"num_hidden_layers": layers, "hidden_size": d_model, "intermediate_size": d_expert}
    sizes |= {"num_experts": num_experts, "num_experts_per_tok": top_k, "vocab_size": 1024}
    torch.manual_seed(0)
    heads, ends = d_model // 8 if d_model < 64 else 8, {"pad_token_id": 0, "eos_token_id": 1}
    return OlmoeForCausalLM(OlmoeConfig(num_attention_heads=heads, num_key_value_heads=heads, **sizes, **ends)).eval()


@torch.no_grad()
def overhead(model: nn.Module, length: int, decode: bool, repeats: int, seconds: float) -> list[Measured]:
    """The same call of the same weights, watched and not, in turn; with ``decode`` of one token behind the text.

    A watched model is a copy whose hooks stay: it shares every weight, so nobody's cache is warmer. ``error`` is the
    largest difference of the logits, and must be 0.
    """
    from moe_lab.hf import watch as watch_model

    tokens = torch.randint(0, 1024, (1, length), generator=torch.Generator().manual_seed(1))
    models = {"not watched": model} | {name: share_weights(model) for name in KEEPS}
    calls = {name: as_call(one, tokens, decode) for name, one in models.items()}
    want = calls["not watched"]()
    watches = [watch_model(models[name], keep=keep) for name, keep in KEEPS.items()]
    try:
        for one in watches:
            one.__enter__()
        errors = {name: float((call() - want).abs().max()) for name, call in calls.items()}
        timings = time_interleaved(calls, repeats=repeats, seconds=seconds)
    finally:
        for one in watches:
            one.__exit__(None, None, None)
    config = model.config
    shape = {"layers": config.num_hidden_layers, "tokens": 1 if decode else length, "context": length}
    shape |= {"d_model": config.hidden_size, "d_expert": config.intermediate_size}
    shape |= {"num_experts": config.num_experts, "top_k": config.num_experts_per_tok}
    task = {"direction": "forward", "shape": shape, "dtype": "float32", "tolerance": 0.0}
    return [Measured(name, error=errors[name], **task, **as_percentiles(timing)) for name, timing in timings.items()]


def share_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters and buffers are the model's own."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def as_call(model: nn.Module, tokens: Tensor, decode: bool):
    """A function that runs the model on the text, or on its last token behind a cache of the others."""
    if not decode:
        return lambda: model(tokens, use_cache=False).logits
    cache = model(tokens[:, :-1], use_cache=True).past_key_values

    def step() -> Tensor:
        logits = model(tokens[:, -1:], past_key_values=cache, use_cache=True).logits
        cache.crop(-1)  # forget the token again
        return logits

    return step
