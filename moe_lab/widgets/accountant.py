"""Accountant: what a model stores, what a token uses of it, and what that costs in FLOPs and bytes."""

import functools
from collections.abc import Iterable
from pathlib import Path

import traitlets

from moe_lab.accounting.counts import Counts, count
from moe_lab.accounting.parts import COMPONENTS, Attention
from moe_lab.accounting.precision import bits_of
from moe_lab.checks import check_whole
from moe_lab.models import EMBEDDINGS, Published, published
from moe_lab.widgets.lab_widget import LabWidget

CUSTOM = "custom"
MODELS = (
    "mixtral-8x7b",
    "mixtral-8x22b",
    "dbrx",
    "olmoe-1b-7b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "deepseek-v3",
    "kimi-k2",
    "llama-4-scout",
    "llama-4-maverick",
)
SIZES = {
    "num_layers": range(1, 129),
    "d_model": range(256, 16385, 256),
    "heads": (1, 2, 4, 8, 16, 32, 64, 128),
    "kv_heads": (1, 2, 4, 8, 16, 32, 64, 128),
    "d_expert": range(128, 16385, 128),
    "num_experts": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512),
    "top_k": range(1, 17),
    "num_shared": range(5),
    "vocab_size": (8192, 16384, 32000, 50304, 65536, 102400, 129280, 151936, 201088, 262144),
}
"""What the sliders offer. Heads are powers of two, so that fewer heads for keys always divide those for queries."""

START = dict(zip(SIZES, (32, 4096, 32, 8, 14336, 8, 2, 0, 32000), strict=True))
"""Where the sliders start: the sizes of Mixtral 8x7B."""

HEAD_DIM = 128
CONTEXTS = tuple(2**power for power in range(7, 21))
DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "int4", "mxfp4")
CONVENTIONS = ("published", *EMBEDDINGS)
MODES = ("inference", "training")
TRAINING_BYTES = {"weights": 2, "gradients": 2, "master weights": 4, "Adam moments": 8}
"""Bytes a parameter in mixed precision: bfloat16 weights and gradients, float32 weights and two moments of Adam's."""


class Accountant(LabWidget):
    """Show a model's parameters, stored against used, its FLOPs a token and its bytes, each by component.

    ``model`` is one of ``models``, names of published models that `moe_lab.count` counts from their configs, or
    "custom": a plain decoder with experts in every layer, heads of 128, no biases and an output of its own, whose sizes
    the sliders set; its counts are those of the config in `config`. ``embeddings`` is `count`'s, or "published": what
    the publisher counts as active, "both" where that is unknown and for the custom model.

    FLOPs are those of a forward pass for a token that attends to ``context`` tokens, three times that in training.
    Bytes in inference: weights in ``dtype`` ("mxfp4": the experts alone, the rest in bfloat16), and the cache of one
    sequence of ``context`` tokens in bfloat16. Bytes in training: 16 for each parameter (`TRAINING_BYTES`), whatever
    ``dtype`` says; activations come on top.

    Example:
        >>> Accountant("mixtral-8x7b", models=["mixtral-8x7b"])  # doctest: +NORMALIZE_WHITESPACE
        Accountant: Mixtral 8x7B stores 46.7 B parameters, and a token uses 12.9 B (28 %): memory follows
        num_experts = 8, FLOPs follow top_k = 2. At 4,096 tokens of context the router takes 0.01 % of the FLOPs,
        attention to the context 7.8 %. Weights and cache take 87.5 GiB. Published: 46.7 B, 0.01 % off; 12.9 B active,
        0.16 % off.

    Raises ValueError or TypeError for an unknown model, dtype, convention or mode, for sizes and contexts that the
    sliders do not have, top_k above num_experts and kv_heads above heads.
    """

    _esm = Path(__file__).with_name("accountant.js")
    _css = Path(__file__).with_name("accountant.css")
    of_the_reader = ("model", *SIZES, "dtype", "context", "embeddings", "mode")

    models = traitlets.List(traitlets.Dict()).tag(sync=True)  # as `describe` makes them
    model = traitlets.Unicode().tag(sync=True)
    num_layers = traitlets.Enum(SIZES["num_layers"], START["num_layers"]).tag(sync=True)
    d_model = traitlets.Enum(SIZES["d_model"], START["d_model"]).tag(sync=True)
    heads = traitlets.Enum(SIZES["heads"], START["heads"]).tag(sync=True)
    kv_heads = traitlets.Enum(SIZES["kv_heads"], START["kv_heads"]).tag(sync=True)
    d_expert = traitlets.Enum(SIZES["d_expert"], START["d_expert"]).tag(sync=True)
    num_experts = traitlets.Enum(SIZES["num_experts"], START["num_experts"]).tag(sync=True)
    top_k = traitlets.Enum(SIZES["top_k"], START["top_k"]).tag(sync=True)
    num_shared = traitlets.Enum(SIZES["num_shared"], START["num_shared"]).tag(sync=True)
    vocab_size = traitlets.Enum(SIZES["vocab_size"], START["vocab_size"]).tag(sync=True)
    dtype = traitlets.Enum(DTYPES, "bfloat16").tag(sync=True)
    context = traitlets.Enum(CONTEXTS, 4096).tag(sync=True)
    embeddings = traitlets.Enum(CONVENTIONS, "published").tag(sync=True)
    mode = traitlets.Enum(MODES, "inference").tag(sync=True)

    def __init__(
        self,
        model: str = MODELS[0],
        *,
        dtype: str = "bfloat16",
        context: int = 4096,
        embeddings: str = "published",
        mode: str = "inference",
        models: Iterable[str] = MODELS,
        **sizes: int,
    ):
        known = {one.slug: one for one in map(published, models)}
        if model != CUSTOM:
            model = published(model).slug
        if model not in (*known, CUSTOM):
            raise ValueError(f"model must be one of {', '.join((*known, CUSTOM))}; got {model!r}")
        unknown = sorted(set(sizes) - set(SIZES))
        if unknown:
            raise TypeError(f"sizes must be among {', '.join(SIZES)}; got {', '.join(unknown)}")
        sizes = {**START, **sizes}
        for name, value in sizes.items():
            check_offered(name, value, SIZES[name])
        check_offered("context", context, CONTEXTS)
        check_whole("top_k", sizes["top_k"], 1, sizes["num_experts"])
        check_whole("kv_heads", sizes["kv_heads"], 1, sizes["heads"])
        words = {"dtype": (dtype, DTYPES), "embeddings": (embeddings, CONVENTIONS), "mode": (mode, MODES)}
        for name, (value, allowed) in words.items():
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        self._published = known
        super().__init__(
            models=[describe(count(one.config), one) for one in known.values()],
            model=model,
            **sizes,
            context=context,
            **{name: value for name, (value, _) in words.items()},
        )
        self.observe(self._fit, ["heads", "num_experts"])

    @property
    def config(self) -> dict[str, object]:
        """The config that is counted: the published one, or that of a "glm4_moe" with the sliders' sizes.

        That family has shared experts, and beside them nothing that a plain decoder lacks.
        """
        if self.model != CUSTOM:
            return self._published[self.model].config
        return plain_config(**{name: getattr(self, name) for name in SIZES})

    @property
    def counts(self) -> Counts:
        """What `count` makes of `config`, with embeddings by the widget's convention."""
        convention = self.embeddings
        if convention == "published":
            convention = "both" if self.model == CUSTOM else self._published[self.model].embeddings or "both"
        return count(self.config, embeddings=convention)

    def tally(self) -> dict[str, object]:
        """What the bars show.

        ``params``, ``active``, ``flops`` and ``bytes`` by part, and their sums ``total_params``, ``active_params``,
        ``flops_per_token``, ``total_bytes``. The part "context" of the FLOPs is attention's scores and sums, which grow
        with the context; "attention" has its weights alone.

        Example:
            >>> found = Accountant("custom", models=[]).tally()
            >>> found["bytes"], found["flops"]["router"] == 2 * found["params"]["router"]
            ({'experts': 90194313216, 'other weights': 3211272192, 'cache': 536870912}, True)
        """
        return tally(self.counts, self.context, self.dtype, self.mode)

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here."""
        counts, context = self.counts, f"{self.context:,} tokens of context"
        found = tally(counts, self.context, self.dtype, self.mode)
        total, active, flops = found["total_params"], found["active_params"], found["flops_per_token"]
        name = "The custom model" if self.model == CUSTOM else self._published[self.model].name
        share = {part: per_cent(found["flops"].get(part, 0), flops) for part in ("router", "context")}
        size = name_bytes(found["total_bytes"])
        training = self.mode == "training"
        return (
            f"{name} stores {name_number(total)} parameters, and a token uses {name_number(active)} "
            f"({per_cent(active, total)} %): memory follows num_experts = {counts.architecture.num_experts}, "
            f"FLOPs follow top_k = {counts.architecture.top_k}. At {context} the router takes {share['router']} % of "
            f"the FLOPs, attention to the context {share['context']} %. "
            f"{f'Training keeps {size}, 16 bytes a parameter' if training else f'Weights and cache take {size}'}. "
            f"{self._against(found, counts.embeddings)}."
        )

    def __repr__(self) -> str:
        return f"Accountant: {self.summary()}"

    def _against(self, found: dict, embeddings: str) -> str:
        """How far off the published numbers, or how many times the sizes at the start."""
        if self.model != CUSTOM:
            one = self._published[self.model]
            pairs = ((one.total_params, "total_params", ""), (one.active_params, "active_params", " active"))
            said = [
                f"{name_number(value, more=3)}{word}, {per_cent(abs(found[key] - value), value)} % off"
                for value, key, word in pairs
                if value is not None
            ]
            return f"Published: {'; '.join(said)}" if said else "No sizes were published"
        start = tally(count_start(embeddings), self.context, self.dtype, self.mode)
        times = [times_of(found[key], start[key]) for key in ("total_params", "active_params", "flops_per_token")]
        return (
            f"Against the sizes of Mixtral 8x7B: {times[0]} times the parameters, {times[1]} times the active ones, "
            f"{times[2]} times the FLOPs"
        )

    @traitlets.validate("model")
    def _check_model(self, proposal):
        allowed = (*self._published, CUSTOM)
        if proposal["value"] not in allowed:
            raise ValueError(f"model must be one of {', '.join(allowed)}; got {proposal['value']!r}")
        return proposal["value"]

    @traitlets.validate("top_k")
    def _check_top_k(self, proposal):
        return check_whole("top_k", proposal["value"], 1, self.num_experts)

    @traitlets.validate("kv_heads")
    def _check_kv_heads(self, proposal):
        return check_whole("kv_heads", proposal["value"], 1, self.heads)

    def _fit(self, _change):
        self.top_k, self.kv_heads = min(self.top_k, self.num_experts), min(self.kv_heads, self.heads)


def check_offered(name: str, value: object, offered: range | tuple[int, ...]) -> None:
    """Refuse a number that a slider does not have."""
    check_whole(name, value, offered[0], offered[-1])
    if value not in offered:
        stepped = isinstance(offered, range)
        bounds = (
            f"in steps of {offered.step} from {offered[0]}" if stepped else f"one of {', '.join(map(str, offered))}"
        )
        raise ValueError(f"{name} must be {bounds}; got {value}")


def plain_config(
    num_layers: int,
    d_model: int,
    heads: int,
    kv_heads: int,
    d_expert: int,
    num_experts: int,
    top_k: int,
    num_shared: int,
    vocab_size: int,
) -> dict[str, object]:
    """A plain decoder with experts in every layer, as a config that `count` reads.

    Example:
        >>> count(plain_config(**START)).total_params == count("mixtral-8x7b").total_params
        True
    """
    return {
        "model_type": "glm4_moe",
        "num_hidden_layers": num_layers,
        "first_k_dense_replace": 0,
        "hidden_size": d_model,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "attention_bias": False,
        "use_qk_norm": False,
        "intermediate_size": d_expert,  # of dense layers, which it has none of
        "moe_intermediate_size": d_expert,
        "n_routed_experts": num_experts,
        "num_experts_per_tok": top_k,
        "n_shared_experts": num_shared,
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
    }


@functools.cache
def count_start(embeddings: str) -> Counts:
    """The counts of the custom model before a slider was moved."""
    return count(plain_config(**START), embeddings=embeddings)


def describe(counts: Counts, source: Published | None = None) -> dict[str, object]:
    """What the browser needs of a model: all its bars come from these numbers.

    ``rows`` has for each component: its name, parameters, active parameters by each convention, and FLOPs a token
    without the context. ``context_flops`` and ``cache_bytes`` have an entry for each of `CONTEXTS`.
    """
    config, params = counts.architecture, counts.params_by_component
    active = [Counts(config, embeddings).active_params_by_component for embeddings in EMBEDDINGS]
    flops = {part: flops for part, flops in split_flops(counts, CONTEXTS[0]).items() if part != "context"}
    names = [name for name in COMPONENTS if name in params or name in flops]
    return {
        "slug": CUSTOM if source is None else source.slug,
        "name": "The custom model" if source is None else source.name,
        "num_experts": config.num_experts,
        "top_k": config.top_k,
        "embeddings": "both" if source is None else source.embeddings or "both",
        "published": [None, None] if source is None else [source.total_params, source.active_params],
        "rows": [
            [name, params.get(name, 0), *(one.get(name, 0) for one in active), flops.get(name, 0)] for name in names
        ],
        "context_flops": [sum(flops_of_context(counts, context).values()) for context in CONTEXTS],
        "cache_bytes": [counts.kv_cache_bytes(context, "bfloat16") for context in CONTEXTS],
    }


def flops_of_context(counts: Counts, context: int) -> dict[str, int]:
    """FLOPs of attention's scores and sums for a token, by the component that they belong to."""
    flops = {}
    for part in counts.architecture.parts:
        if isinstance(part, Attention) and part.queries == "text":
            flops[part.component] = flops.get(part.component, 0) + part.flops_per_pair * part.met(context)
    return flops


def split_flops(counts: Counts, context: int) -> dict[str, int]:
    """FLOPs a token by component, with attention's scores and sums apart, under "context"."""
    apart = flops_of_context(counts, context)
    flops = counts.flops_per_token_by_component(context)
    return {part: number - apart.get(part, 0) for part, number in flops.items()} | {"context": sum(apart.values())}


def tally(counts: Counts, context: int, dtype: str, mode: str) -> dict[str, object]:
    """`Accountant.tally` of any counts: parameters, FLOPs and bytes by part, without the parts that are 0."""
    params, flops = counts.params_by_component, split_flops(counts, context)
    bars = {
        "params": params,
        "active": counts.active_params_by_component,
        "flops": {part: (3 if mode == "training" else 1) * number for part, number in flops.items()},
        "bytes": {part: each * counts.total_params for part, each in TRAINING_BYTES.items()},
    }
    if mode == "inference":
        wide, narrow = ("bfloat16", "mxfp4") if dtype == "mxfp4" else (dtype, dtype)
        experts = -int(-params.get("experts", 0) * bits_of("dtype", narrow) // 8)
        rest = counts.bytes(wide, experts=narrow) - experts
        cache = counts.kv_cache_bytes(context, "bfloat16")
        bars["bytes"] = {"experts": experts, "other weights": rest, "cache": cache}
    bars = {name: {part: number for part, number in bar.items() if number} for name, bar in bars.items()}
    sums = ("total_params", "active_params", "flops_per_token", "total_bytes")
    return {**bars, **{key: sum(bar.values()) for key, bar in zip(sums, bars.values(), strict=True)}}


def _round(number: int, unit: int, digits: int, least: int = 0) -> str:
    """number / unit in so many decimals, a half upwards, all but ``least`` without zeros at the end; exactly."""
    scaled = (2 * number * 10**digits + unit) // (2 * unit)
    whole, rest = divmod(scaled, 10**digits)
    decimals = f"{rest:0{digits}d}".rstrip("0").ljust(least, "0") if digits else ""
    return f"{whole}.{decimals}" if decimals else str(whole)


def _name(number: int, base: int, units: tuple[str, ...], more: int = 0) -> str:
    """Three digits and so many more, and the largest unit that is not above the number."""
    power = 0
    while power + 1 < len(units) and number >= base ** (power + 1):
        power += 1
    unit = base**power
    digits = 0 if not power else more + (0 if number >= 100 * unit else 1 if number >= 10 * unit else 2)
    return f"{_round(number, unit, digits)} {units[power]}".rstrip()


def name_number(number: int, more: int = 0) -> str:
    """A number of parameters in words, in three digits and so many more.

    Example:
        >>> name_number(46_702_792_704), name_number(999), name_number(116_830_000_000, more=3)
        ('46.7 B', '999', '116.83 B')
    """
    return _name(number, 1000, ("", "K", "M", "B", "T"), more)


def name_bytes(number: int) -> str:
    """A number of bytes in words.

    Example:
        >>> name_bytes(80 * 2**30), name_bytes(1536)
        ('80 GiB', '1.5 KiB')
    """
    return _name(number, 1024, ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"))


def per_cent(part: int, whole: int) -> str:
    """Per cent of the whole with two digits that count, a half upwards.

    Example:
        >>> per_cent(1, 4), per_cent(1, 40), per_cent(1, 4000), per_cent(1, 10**9), per_cent(0, 7)
        ('25', '2.5', '0.03', 'under 0.01', '0')
    """
    digits = 0 if 10 * part >= whole else 1 if 100 * part >= whole else 2
    said = _round(100 * part, whole, digits)
    return "under 0.01" if part and said == "0" else said


def times_of(number: int, other: int) -> str:
    """How many times the other, in two decimals.

    Example:
        >>> times_of(3, 2), times_of(5, 5), times_of(1, 999)
        ('1.50', '1.00', 'under 0.01')
    """
    said = _round(number, other, 2, least=2)
    return "under 0.01" if said == "0.00" else said
