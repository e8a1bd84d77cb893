"""Every family's FLOPs against those that a small model of Transformers multiplies on the CPU."""

import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.utils._python_dispatch import _disable_current_modes
from transformers.activations import ACT2FN

from moe_lab.accounting.counter import flop_counter
from moe_lab.accounting.counts import count

from .small_configs import MODEL_TYPES, WHOLES


def leave_out_positions(model):
    """Transformers makes the angles of rotary embeddings with a matrix product; they depend on no weight."""
    for name, module in model.named_modules():
        if name.endswith("rotary_emb"):
            module.forward = uncounted(module.forward)


def uncounted(forward):
    def run(*arguments, **options):
        with _disable_current_modes():
            return forward(*arguments, **options)

    return run


def causal_convolution(hidden_states, weight, bias=None, activation=None, **_):
    """Transformers' own pads both ends and cuts the end off again, so it multiplies kernel - 1 tokens too many."""
    channels, kernel = weight.shape
    padded = torch.nn.functional.pad(hidden_states, (kernel - 1, 0))
    out = torch.nn.functional.conv1d(padded, weight.unsqueeze(1), bias, groups=channels)
    return out if activation is None else ACT2FN[activation](out)


def delta_rule(query, key, value, *, g, beta, **_):
    """Token by token: decay, read what the key holds, write the difference, read with the query."""
    heads = value.shape[2]
    query, key = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (query, key))
    query, key = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    query = query * query.shape[-1] ** -0.5
    decay = g.exp() if g.dim() == 4 else g.exp().unsqueeze(-1)
    state = torch.zeros(value.shape[0], heads, key.shape[-1], value.shape[-1])
    outputs = []
    for t in range(value.shape[1]):
        state = decay[:, t].unsqueeze(-1) * state
        error = value[:, t] - (key[:, t].unsqueeze(-2) @ state).squeeze(-2)
        state = state + key[:, t].unsqueeze(-1) @ (beta[:, t].unsqueeze(-1) * error).unsqueeze(-2)
        outputs.append((query[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), None


def mamba2_scan(hidden_states, dt, A, B, C, *, D, dt_bias, dt_limit, **_):
    """Token by token: decay, write the outer product of input and B, read with C."""
    dt = torch.nn.functional.softplus(dt + dt_bias).clamp(*dt_limit)
    B, C = (x.repeat_interleave(hidden_states.shape[2] // x.shape[2], dim=2) for x in (B, C))
    state, outputs = 0, []
    for t in range(dt.shape[1]):
        x = (dt[:, t].unsqueeze(-1) * hidden_states[:, t]).unsqueeze(-1)
        state = (dt[:, t] * A).exp()[..., None, None] * state + x @ B[:, t].unsqueeze(-2)
        outputs.append((state @ C[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, dim=1) + D.unsqueeze(-1) * hidden_states


def mamba_scan(hidden_states, dt, A, B, C, *, D, z, delta_bias, **_):
    """The same with a state a channel, and a decay for each number of it."""
    dt = torch.nn.functional.softplus(dt + delta_bias.unsqueeze(-1))
    state, outputs = 0, []
    for t in range(dt.shape[2]):
        x = (dt[..., t] * hidden_states[..., t]).unsqueeze(-1)
        state = (dt[..., t].unsqueeze(-1) * A).exp() * state + x @ B[:, :, t].unsqueeze(-2)
        outputs.append((state @ C[:, :, t].unsqueeze(-1)).squeeze(-1))
    return (torch.stack(outputs, dim=-1) + D.unsqueeze(-1) * hidden_states) * torch.nn.functional.silu(z)


def lightning_attention(forward):
    """MiniMax's own form, token by token, which Transformers takes where there is a state already."""

    def run(self, hidden_states, **options):
        state = torch.zeros(hidden_states.shape[0], self.num_attention_heads, self.head_dim, self.head_dim)
        empty = SimpleNamespace(get_linear_cache=lambda _: state, set_linear_cache=lambda *_: None)
        return forward(self, hidden_states, **{**options, "past_key_values": empty})

    return run


def dynamic_convolution(_):
    """Inkling 2's, whose filters differ from token to token: Transformers multiplies and sums elementwise."""

    def run(self, hidden_states, dynamic_input, **_):
        kernel = self.conv_kernel_size
        taps = self.weight_proj(dynamic_input).unflatten(-1, (self.num_heads, 1, kernel))
        weights = self.static_weight.T.unflatten(0, (self.num_heads, -1)) + taps
        padded = torch.nn.functional.pad(hidden_states, (0, 0, kernel - 1, 0))
        windows = padded.unfold(1, kernel, 1).flip(-1).unflatten(2, (self.num_heads, -1))
        out = (windows.unsqueeze(-2) @ weights.unsqueeze(-1)).flatten(2)
        return (out + hidden_states) / (2 * kernel + 1) ** 0.5

    return run


RECURRENT = {
    "jamba": ("mamba_selective_scan", mamba_scan),
    "granitemoehybrid": ("mamba2_chunk_scan", mamba2_scan),
    "nemotron_h": ("mamba2_chunk_scan", mamba2_scan),
    "qwen3_next": ("torch_chunk_gated_delta_rule", delta_rule),
    "qwen3_5_moe": ("torch_chunk_gated_delta_rule", delta_rule),
    "qwen4_exp": ("torch_chunk_gated_delta_rule", delta_rule),
    "kimi_linear": ("chunk_kimi_delta_attention", delta_rule),
    "bailing_hybrid": ("chunk_kimi_delta_attention", delta_rule),
    "glm5_next": ("chunk_kimi_delta_attention", delta_rule),
    "minimax": ("MiniMaxLightningAttention.forward", lightning_attention),
    "inkling2": ("Inkling2DynamicShortConvolution.forward", dynamic_convolution),
}
"""The scans of recurrent layers, and the recurrences that they compute. Transformers works in chunks, and computes a
whole chunk even for a few tokens; `State` counts the recurrence, so that is what runs where FLOPs are compared.
One convolution is among them that Transformers does not compute by products."""


def leave_out_the_token_before(projection):
    """ZAYA computes what the first token takes from one before it, which is made of zeros and counts for no token."""
    convolution, delayed = projection.conv_qk_depthwise.forward, projection.v_proj_delayed.forward
    first, second = projection.depthwise_kernel_size, projection.grouped_kernel_size

    def convolve(x):
        before = uncounted(convolution)(x[..., : first + second - 2])
        return torch.cat([before, convolution(x[..., second - 1 :])], dim=-1)

    projection.conv_qk_depthwise.forward = convolve
    projection.v_proj_delayed.forward = lambda x: delayed(x) if x.any() else uncounted(delayed)(x)


def use_recurrences(model, monkeypatch):
    """Put the recurrences in the place of the scans, in the module that the model's class is from."""
    part = next(part for part in model.modules() if isinstance(part, transformers.PreTrainedModel))
    module = sys.modules[type(part).__module__]
    if hasattr(module, "causal_conv1d_fn"):
        monkeypatch.setattr(module, "causal_conv1d_fn", causal_convolution)
    for projection in [part for part in model.modules() if type(part).__name__ == "ZayaCCAProjection"]:
        leave_out_the_token_before(projection)
    name, recurrence = RECURRENT.get(module.__name__.split(".")[-2], (None, None))
    if name is not None and "." in name:
        owner, method = getattr(module, name.split(".")[0]), name.split(".")[1]
        monkeypatch.setattr(owner, method, recurrence(getattr(owner, method)))
    elif name is not None:
        monkeypatch.setattr(module, name, recurrence)


@pytest.mark.parametrize("model_type", sorted(set(MODEL_TYPES) - set(WHOLES)))
def test_flops_against_the_counter(model_type, small_config, fields_of, build, monkeypatch):
    """The forward pass of a small model on the CPU, every pair of attention multiplied, as plain kernels do."""
    config = small_config(model_type)
    model = build(config, "cpu", attn_implementation="eager").eval().requires_grad_(False)
    leave_out_positions(model)
    use_recurrences(model, monkeypatch)
    tokens = torch.arange(24).reshape(2, 12)
    written = {"decoder_input_ids": tokens[:, :7]} if config.is_encoder_decoder else {}
    with torch.no_grad(), flop_counter() as counter:
        model(tokens, use_cache=False, **written)
    lengths = {"decoder_tokens": 7} if written else {}
    counts = count(fields_of(config, model_type))
    assert counter.total_flops == 2 * counts.flops_per_sequence(12, skip_masked=False, **lengths)


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name.removesuffix("_text") in RECURRENT])
def test_the_recurrences_that_are_counted_compute_what_transformers_computes(
    model_type, small_config, build, monkeypatch
):
    model = build(small_config(model_type), "cpu", attn_implementation="eager").eval().requires_grad_(False)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = model(tokens, use_cache=False)
        use_recurrences(model, monkeypatch)
        found = model(tokens, use_cache=False)
    expected, found = (getattr(output, "logits", output) for output in (expected, found))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
