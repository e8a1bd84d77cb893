"""Answers to the exercises of lesson 05: right ones, and wrong ones that must be refused with a reason."""

import math

import torch

import moe_lab as ml

ARGUMENTS = {
    "05.1": "config",
    "05.2": "tokens, d_model, d_expert, num_experts, top_k, num_shared, router_frozen",
    "05.3": "config, active_params, step",
    "05.4": "config, tokens, sequences_per_s, num_devices, peak_flops",
}
NAMES = ("both", "output", "none")


def active(
    config,
    top_k=None,
    matrices=3,
    kv_heads=None,
    head_dim=None,
    router_rows=None,
    norms=2,
    last_norm=1,
    embeddings=None,
    attentions=1,
):
    """Active parameters with slips to choose."""
    c, d = config, config["hidden_size"]
    top_k = c["num_experts_per_tok"] if top_k is None else top_k
    kv_heads = c["num_key_value_heads"] if kv_heads is None else kv_heads
    head_dim = c["head_dim"] if head_dim is None else head_dim
    rows = c["num_local_experts"] if router_rows is None else router_rows
    embeddings = (1 if c["tie_word_embeddings"] else 2) if embeddings is None else embeddings
    attention = 2 * d * head_dim * (c["num_attention_heads"] + kv_heads)
    layer = attentions * attention + top_k * matrices * d * c["intermediate_size"] + d * rows + norms * d
    return c["num_hidden_layers"] * layer + last_norm * d + embeddings * c["vocab_size"] * d


def step(
    tokens,
    d_model,
    d_expert,
    num_experts,
    top_k,
    num_shared,
    router_frozen,
    *,
    matrices=3,
    shared_width=1,
    router=True,
    backward=2,
    frozen=1,
    frozen_experts=2,
    add=2,
):
    """FLOPs forward and backward with slips to choose."""
    gate = add * tokens * d_model * num_experts * router
    experts = add * matrices * tokens * (top_k + shared_width * num_shared) * d_model * d_expert
    if router_frozen:
        return gate + experts, frozen * gate + frozen_experts * experts
    return gate + experts, backward * (gate + experts)


def counts(config):
    return {name: ml.count(config, embeddings=name) for name in NAMES}


def conventions(config, active_params, step):
    return [name for name, one in counts(config).items() if 2 * abs(one.active_params - active_params) <= step]


def utilisation(config, tokens, sequences_per_s, num_devices, peak_flops):
    done = 3 * ml.count(config).flops_per_sequence(tokens)
    return done * sequences_per_s / (num_devices * peak_flops)


RIGHT = {"05.1": active, "05.2": step, "05.3": conventions, "05.4": utilisation}


# ---------------------------------------------------------------- the same answers, differently written


def active_by_leaving_out(config):
    """Everything that a model of only the active experts stores, and the router's rows of the others."""
    layers, d = config["num_hidden_layers"], config["hidden_size"]
    idle = config["num_local_experts"] - config["num_experts_per_tok"]
    shapes = [(config["vocab_size"], d)] * (1 if config["tie_word_embeddings"] else 2) + [(d, 1)]
    for _ in range(layers):
        wide, narrow = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
        shapes += [(wide, d), (narrow, d), (narrow, d), (d, wide), (d, 1), (d, 1)]
        shapes += [(config["num_experts_per_tok"], d), (idle, d)]
        shapes += [(config["intermediate_size"], d)] * (3 * config["num_experts_per_tok"])
    return sum(rows * columns for rows, columns in shapes)


def step_by_products(tokens, d_model, d_expert, num_experts, top_k, num_shared, router_frozen):
    """Every product (m, k, n) written down: forward once, backward for its input and its weight."""
    products = [(tokens, d_model, num_experts, not router_frozen)]
    for rows in (tokens * top_k, tokens * num_shared):
        products += [(rows, d_model, 2 * d_expert, True), (rows, d_expert, d_model, True)]
    flops = [(2 * m * k * n, trained) for m, k, n, trained in products]
    return [sum(one for one, _ in flops), sum(one * (1 + trained) for one, trained in flops)]


def conventions_by_rounding(config, active_params, step):
    low, high = active_params - step / 2, active_params + step / 2
    return tuple(name for name in NAMES if low <= ml.count(config, embeddings=name).active_params <= high)


def utilisation_by_first_and_last_token(config, tokens, sequences_per_s, num_devices, peak_flops):
    """The mean of the first token and the last, times all: without windows, the context costs grow in a line."""
    one = ml.count(config)
    forward = sum(one.flops_per_token(at) for at in (1, tokens)) / 2 * tokens
    seconds = 3 * forward / (num_devices * peak_flops)
    return torch.tensor(seconds * sequences_per_s, dtype=torch.float64)


ALSO_RIGHT = {
    "05.1": active_by_leaving_out,
    "05.2": step_by_products,
    "05.3": conventions_by_rounding,
    "05.4": utilisation_by_first_and_last_token,
}


# ---------------------------------------------------------------- wrong answers


def slip(**changes):
    return lambda *arguments: step(*arguments, **changes)


def share(flops):
    """A utilisation from another idea of the FLOPs of a sequence."""
    return lambda config, tokens, rate, devices, peak: flops(config, tokens) * rate / (devices * peak)


def all_experts(config):
    key = "num_local_experts" if "num_local_experts" in config else "n_routed_experts"
    return ml.count(config | {"num_experts_per_tok": config[key]})


WRONG = {
    "05.1": {
        "all experts": lambda c: active(c, top_k=c["num_local_experts"]),
        "one expert": lambda c: active(c, top_k=1),
        "forgets the router": lambda c: active(c, router_rows=0),
        "the router's rows of the active experts": lambda c: active(c, router_rows=c["num_experts_per_tok"]),
        "two matrices an expert": lambda c: active(c, matrices=2),
        "as many heads for keys and values": lambda c: active(c, kv_heads=c["num_attention_heads"]),
        "head_dim is hidden_size / heads": lambda c: active(c, head_dim=c["hidden_size"] // c["num_attention_heads"]),
        "forgets the norms": lambda c: active(c, norms=0),
        "one norm a layer": lambda c: active(c, norms=1),
        "forgets the last norm": lambda c: active(c, last_norm=0),
        "two matrices though they are tied": lambda c: active(c, embeddings=2),
        "one embedding": lambda c: active(c, embeddings=1),
        "no embedding": lambda c: active(c, embeddings=0),
        "top_k times 7B": lambda c: active(c, attentions=c["num_experts_per_tok"]),
        "total, divided by experts over top_k": lambda c: (
            active(c, top_k=c["num_local_experts"]) * c["num_experts_per_tok"] // c["num_local_experts"]
        ),
        "rounded to millions": lambda c: round(active(c), -6),
    },
    "05.2": {
        "a multiply-add is one": slip(add=1),
        "two matrices an expert": slip(matrices=2),
        "all experts": lambda t, d, f, e, k, s, z: step(t, d, f, e, e, s, z),
        "forgets the router": slip(router=False),
        "forgets the shared experts": slip(shared_width=0),
        "routes the shared experts": lambda t, d, f, e, k, s, z: step(t, d, f, e, k * (1 + s), 0, z),
        "backward is forward": slip(backward=1, frozen_experts=1),
        "backward with forward, three times": slip(backward=3, frozen=2, frozen_experts=3),
        "a frozen router has no backward": slip(frozen=0),
        "a frozen router costs as a trained one": slip(frozen=2),
        "a frozen router freezes the experts": slip(frozen_experts=1),
        "router of top_k rows": lambda t, d, f, e, k, s, z: step(t, d, f, k, k, s, z),
        "one number": lambda *a: sum(step(*a)),
        "backward first": lambda *a: step(*a)[::-1],
        "a token": lambda t, *a: step(1, *a),
    },
    "05.3": {
        "always both": lambda c, a, s: ["both"],
        "all three": lambda c, a, s: list(NAMES),
        "the nearest": lambda c, a, s: [min(NAMES, key=lambda n: abs(counts(c)[n].active_params - a))],
        "the first that fits": lambda c, a, s: conventions(c, a, s)[:1],
        "within a whole step": lambda c, a, s: conventions(c, a, 2 * s),
        "less than half a step": lambda c, a, s: conventions(c, a, s - 1),
        "cut off": lambda c, a, s: [n for n, one in counts(c).items() if one.active_params // s * s == a],
        "within half a percent": lambda c, a, s: [
            n for n, one in counts(c).items() if abs(one.active_params - a) <= 0.005 * a
        ],
        "total parameters": lambda c, a, s: [n for n, one in counts(c).items() if 2 * abs(one.total_params - a) <= s],
        "from the other side": lambda c, a, s: conventions(c, a, s)[::-1],
        "only figures that are too small": lambda c, a, s: [
            n for n, one in counts(c).items() if 0 <= 2 * (one.active_params - a) <= s
        ],
    },
    "05.4": {
        "counts all experts": share(lambda c, t: 3 * all_experts(c).flops_per_sequence(t)),
        "forward only": share(lambda c, t: ml.count(c).flops_per_sequence(t)),
        "backward as forward": share(lambda c, t: 2 * ml.count(c).flops_per_sequence(t)),
        "counts recomputation": share(lambda c, t: 4 * ml.count(c).flops_per_sequence(t)),
        "6 active parameters a token": share(lambda c, t: 6 * ml.count(c).active_params * t),
        "6 parameters a token": share(lambda c, t: 6 * ml.count(c).total_params * t),
        "pays masked attention": share(lambda c, t: 3 * ml.count(c).flops_per_sequence(t, skip_masked=False)),
        "all tokens at the full context": share(lambda c, t: 3 * t * ml.count(c).flops_per_token(t)),
        "all tokens at no context": share(lambda c, t: 3 * t * ml.count(c).flops_per_token(1)),
        "one token": share(lambda c, t: 3 * ml.count(c).flops_per_token(t)),
        "one device": lambda c, t, r, n, p: utilisation(c, t, r, 1, p),
        "percent": lambda *a: 100 * utilisation(*a),
        "tokens a second": lambda c, t, r, n, p: utilisation(c, t, r / t, n, p),
        "never above 1": lambda *a: math.tanh(utilisation(*a)),
    },
}

HINT_NAMES = {"ml": ml}
