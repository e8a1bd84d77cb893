"""The families that can be counted, and what nearly all of them have in common."""

from collections.abc import Callable, Sequence

from moe_lab.accounting.blocks import embedding, grouped_query_attention, latent_attention, mlp, norm, output
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part
from moe_lab.checks import check_whole

FAMILIES: dict[str, Callable[[Fields], Architecture]] = {}
"""model_type -> the function that reads such a config."""


def family(*model_types: str):
    """Enter a function under the model types whose configs it reads."""

    def enter(read: Callable[[Fields], Architecture]) -> Callable[[Fields], Architecture]:
        for model_type in model_types:
            if model_type in FAMILIES:
                raise ValueError(f"model_type must be new, {model_type!r} is read already")
            FAMILIES[model_type] = read
        return read

    return enter


def decoder(
    fields: Fields,
    layers: Sequence[Sequence[Part]],
    *,
    experts: tuple[int, int] = (0, 0),
    moe_layers: int,
    tied: bool = False,
    norm_bias: bool = False,
    output_bias: bool = False,
    more: Sequence[Part] = (),
    last: Sequence[Part] | None = None,
    width: str = "hidden_size",
    remarks: tuple[str, ...] = (),
) -> Architecture:
    """A decoder-only language model: embedding, the layers, a last norm, and the projection onto the vocabulary.

    ``experts`` is (num_experts, top_k), ``tied`` the family's default for ``tie_word_embeddings``, ``width`` its name
    for the width, ``last`` what stands in the place of the last norm.
    """
    d_model, vocab_size = fields.size(width, "hidden_size"), fields.size("vocab_size")
    parts = [
        *embedding(vocab_size, d_model),
        *(part for layer in layers for part in layer),
        *(norm(d_model, bias=norm_bias) if last is None else last),
        *output(vocab_size, d_model, tied=fields.flag("tie_word_embeddings", tied), bias=output_bias),
        *more,
    ]
    return Architecture(str(fields.kind), tuple(parts), d_model, len(layers), moe_layers, *experts, remarks)


def read_experts(fields: Fields, *names: str, top_k: Sequence[str] = ("num_experts_per_tok",)) -> tuple[int, int]:
    """(num_experts, top_k), and no token can use more experts than there are."""
    num_experts = fields.size(*names)
    return num_experts, fields.size(*top_k, high=num_experts)


def read_heads(fields: Fields, *, head_dim: object = None, kv_heads: object = REQUIRED) -> tuple[int, int, int]:
    """(heads, kv_heads, head_dim); where ``head_dim`` is None a missing one is hidden_size / heads.

    Where ``kv_heads`` is None, every head has keys and values of its own unless num_key_value_heads says less.
    """
    heads = fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", default=kv_heads, high=heads) or heads
    if heads % kv_heads:
        name = fields.name("num_key_value_heads")
        raise ValueError(f"{name} must divide num_attention_heads={heads}, got {kv_heads}")
    width = fields.size("head_dim", default=REQUIRED if head_dim is REQUIRED else None)
    if width is None:
        d_model = fields.size("hidden_size")
        if d_model % heads:
            raise ValueError(
                f"{fields.name('num_attention_heads')} must divide hidden_size={d_model} where there is no head_dim, "
                f"got {heads}"
            )
        width = d_model // heads
    return heads, kv_heads, width


def read_attention(
    fields: Fields,
    *,
    head_dim: object = None,
    kv_heads: object = REQUIRED,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: str = "none",
    window: int | None = None,
) -> list[Part]:
    """Grouped-query attention from the usual fields; ``qk_norm`` "head" normalises each head, "full" all of them."""
    heads, kv_heads, width = read_heads(fields, head_dim=head_dim, kv_heads=kv_heads)
    norms = {
        "none": [],
        "head": [*norm(width), *norm(width)],
        "full": [*norm(heads * width), *norm(kv_heads * width)],
    }[qk_norm]
    return [
        *grouped_query_attention(
            fields.size("hidden_size"),
            heads,
            kv_heads,
            width,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            window=window,
        ),
        *norms,
    ]


def read_windows(fields: Fields, layers: int, attends_to_all: Callable[[int], bool]) -> list[int | None]:
    """The window of each layer, None where it attends to all tokens: by layer_types, or else by the layer's number."""
    kinds = fields.per_layer("layer_types", layers, ("sliding_attention", "full_attention"), default=None)
    full = [attends_to_all(n) for n in range(layers)] if kinds is None else [kind == "full_attention" for kind in kinds]
    window = None if all(full) else fields.size("sliding_window")
    return [None if everything else window for everything in full]


def read_sparse(fields: Fields, layers: int, *, dense_first: object = REQUIRED) -> list[bool]:
    """Which layers have experts: by mlp_layer_types, or else all but the first_k_dense_replace first ones.

    ``dense_first`` stands in for a missing first_k_dense_replace.
    """
    kinds = fields.per_layer("mlp_layer_types", layers, ("dense", "sparse"), default=None)
    if kinds is not None:
        return [kind == "sparse" for kind in kinds]
    first = fields.size("first_k_dense_replace", default=dense_first, low=0, high=layers)
    return [number >= first for number in range(layers)]


def read_shared_experts(fields: Fields, name: str, *, bias: bool = False, low: int = 0) -> list[Part]:
    """The experts that every token uses, as one network: as many times moe_intermediate_size wide as they are."""
    shared = fields.size(name, low=low)
    hidden = shared * fields.size("moe_intermediate_size")
    return mlp("shared_experts", fields.size("hidden_size"), hidden, bias=bias) if shared else []


def read_latent_attention(
    fields: Fields, *, query_rank: object = REQUIRED, rope_dim: int | None = None, chosen: int | None = None
) -> list[Part]:
    """Latent attention from the fields that DeepSeek-V2 introduced.

    ``query_rank`` and ``rope_dim`` are for families that read these two in another way.
    """
    return latent_attention(
        fields.size("hidden_size"),
        fields.size("num_attention_heads"),
        query_rank=fields.size("q_lora_rank", null=None) if query_rank is REQUIRED else query_rank,
        latent_rank=fields.size("kv_lora_rank"),
        nope_dim=fields.size("qk_nope_head_dim"),
        rope_dim=fields.size("qk_rope_head_dim") if rope_dim is None else rope_dim,
        value_dim=fields.size("v_head_dim"),
        bias=fields.flag("attention_bias", False),
        chosen=chosen,
    )


def pre_norms(fields: Fields, *, bias: bool = False) -> list[Part]:
    """One norm before attention, one before the feed-forward network."""
    return [*norm(fields.size("hidden_size"), bias=bias), *norm(fields.size("hidden_size"), bias=bias)]


def num_layers(fields: Fields, *names: str) -> int:
    """How many layers, bounded so that a slip of the pen does not fill the memory."""
    names = names or ("num_hidden_layers",)
    return check_whole(fields.name(*names), fields.get(*names), 1, 10_000)


OLD_WORDS = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}
"""What older releases called a kind of layer."""


def layer_kinds(
    fields: Fields, layers: int, kinds: Sequence[str], *names: str, default: Sequence[str] | object = REQUIRED
) -> Sequence[str]:
    """What each layer does, from a list with one word a layer, older words made new; ``default`` where there is none.

    ``names`` are the names of the list, "layer_types" if none is given.
    """
    name = next((name for name in names if fields.values.get(name) is not None), (names or ("layer_types",))[0])
    allowed = [*kinds, *(old for old, new in OLD_WORDS.items() if new in kinds)]
    words = fields.per_layer(name, layers, allowed, default=default)
    return words if words is default else [OLD_WORDS.get(word, word) for word in words]
