"""Two models that have no config.json: Grok-1 and those of the DeepSpeed-MoE paper, in fields of our own."""

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import decoder, family, num_layers, read_attention
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part, Weight
from moe_lab.checks import check_whole


@family("grok-1", "deepspeed_moe")
def gpt(fields: Fields) -> Architecture:
    """A decoder whose ``num_experts`` is one number, or one for each layer, where 0 is a dense layer.

    Flags say the rest, each with the model's own as default: ``gated`` (3 matrices a network, or 2), ``biases`` (in
    attention, networks and norms), ``norms_per_layer`` (2, or 4 with one after each block as well),
    ``learned_position_embeddings`` (max_position_embeddings rows), ``tie_word_embeddings``, ``residual`` (a network for
    every token beside the experts, and the two mixed by the softmax of a linear layer with 2 outputs). ``head_dim`` is
    needed.
    Source: xAI 2024, the code of grok-1 as published; Rajbhandari et al. 2022 (arXiv:2201.05596), sections 3 and 4.1.
    """
    grok = fields.kind == "grok-1"
    d_model, hidden, layers = fields.size("hidden_size"), fields.size("intermediate_size"), num_layers(fields)
    gated, biases = fields.flag("gated", grok), fields.flag("biases", not grok)
    counts = experts_by_layer(fields, layers)
    top_k = fields.size("num_experts_per_tok", high=min(count for count in counts if count))
    attention = read_attention(fields, head_dim=REQUIRED, qkv_bias=biases, output_bias=biases)
    rest = [*norm(d_model, bias=biases) * fields.choice("norms_per_layer", (2, 4), 4 if grok else 2), *attention]
    beside: list[Part] = []
    if fields.flag("residual", False):
        beside = [
            *mlp("shared_experts", d_model, hidden, gated=gated, bias=biases),
            *linear("shared_experts", d_model, 2, bias=True),
        ]
    blocks = []
    for count in counts:
        dense = mlp("dense_mlp", d_model, hidden, gated=gated, bias=biases)
        sparse = [*routed_experts(d_model, hidden, count, top_k, gated=gated, bias=biases), *beside]
        blocks.append([*rest, *(sparse if count else dense)])
    positions = fields.flag("learned_position_embeddings", not grok)
    return decoder(
        fields,
        blocks,
        experts=(max(counts), top_k),
        moe_layers=sum(count > 0 for count in counts),
        tied=True,
        norm_bias=biases,
        more=[Weight("embedding", (fields.size("max_position_embeddings"), d_model), use="lookup")]
        if positions
        else [],
    )


def experts_by_layer(fields: Fields, layers: int) -> list[int]:
    """The number of experts of each layer; some layer must have some."""
    value = fields.get("num_experts")
    if not isinstance(value, list | tuple):
        return [fields.size("num_experts")] * layers
    if len(value) != layers:
        raise ValueError(
            f"{fields.name('num_experts')} must have an entry for each of {layers} layers, got {len(value)}"
        )
    counts = [check_whole(f"{fields.name('num_experts')}[{number}]", entry, 0) for number, entry in enumerate(value)]
    if not any(counts):
        raise ValueError(f"{fields.name('num_experts')} must have experts in some layer, got 0 for all {layers}")
    return counts
