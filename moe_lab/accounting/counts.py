"""Counting a model from its config alone: parameters, FLOPs and bytes, by component."""

import difflib
from dataclasses import dataclass

import torch

from moe_lab.accounting.families import FAMILIES
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import COMPONENTS, Architecture, Attention, State
from moe_lab.accounting.precision import bits_of
from moe_lab.accounting.reading import read_config
from moe_lab.checks import check_size, check_whole
from moe_lab.models import EMBEDDINGS


@dataclass(frozen=True)
class Counts:
    """What a model costs, in whole numbers. Made by `count`.

    A FLOP is a floating-point operation; a multiply-add is 2. Only products are counted: matrix products, the two of
    attention, convolutions, and what recurrent states take; not norms, activations, softmax or the choice of experts.
    That is what PyTorch's counter counts, so the two can be held against each other.
    """

    architecture: Architecture
    embeddings: str = "both"

    @property
    def total_params(self) -> int:
        """All parameters that are stored; a tied output projection counts once."""
        return sum(weight.params for weight in self.architecture.weights)

    @property
    def active_params(self) -> int:
        """Parameters that one text token uses, embeddings by the convention ``embeddings``.

        Every weight but the experts that the token is not sent to, and but those that only see images. With
        "both" the whole embedding counts, although a token reads one row of it: that is how most publishers count.
        """
        return sum(self.active_params_by_component.values())

    @property
    def params_by_component(self) -> dict[str, int]:
        """Stored parameters of each component that the model has."""
        return self._by_component(lambda weight: weight.params)

    @property
    def active_params_by_component(self) -> dict[str, int]:
        """Parameters that a text token uses, of each component; see `active_params`."""
        by_component = self._by_component(lambda weight: weight.active_params if weight.stream != "image" else 0)
        tied = next((w for w in self.architecture.weights if w.component == "output" and not w.stored), None)
        if tied is not None and self.embeddings == "output":
            by_component["output"] += tied.numbers  # one matrix in two roles: the role that counts is the output's
        for component in ("embedding", "output"):
            if component in by_component and component not in EMBEDDINGS[self.embeddings]:
                by_component[component] = 0
        return by_component

    def _by_component(self, measure) -> dict[str, int]:
        found = {weight.component for weight in self.architecture.weights}
        sums = {component: 0 for component in COMPONENTS if component in found}
        for weight in self.architecture.weights:
            sums[weight.component] += measure(weight)
        return sums

    def flops_per_token(self, context: int) -> int:
        """FLOPs of the forward pass for one token that attends to ``context`` tokens, itself among them.

        2 * (active weights that multiply) + sum over layers of 2 * heads * (score_dim + value_dim) * keys: ``context``,
        or as many as a window, a chunk or an indexer leaves it. The last token of a prompt costs that, and so does each
        token in decoding. Backward is twice as much: one product for the gradient of the input, one for that of the
        weight.

        Raises ValueError for an encoder-decoder, whose tokens differ (see `flops_per_sequence`).
        """
        return sum(self.flops_per_token_by_component(context).values())

    def flops_per_token_by_component(self, context: int) -> dict[str, int]:
        """`flops_per_token`, of each component."""
        check_size("context", context, 1)
        self._refuse_two_kinds("context", context)
        return self._flops({"text": 1}, lambda part: part.met(context))

    def flops_per_sequence(self, tokens: int, *, decoder_tokens: int | None = None, skip_masked: bool = True) -> int:
        """FLOPs of the forward pass over a whole sequence, logits of every token included.

        An encoder-decoder reads ``tokens`` and writes ``decoder_tokens``. With ``skip_masked`` a token attends to
        those before it and itself only; without, every pair is multiplied and then masked, as plain kernels do.

        Raises ValueError for ``decoder_tokens`` of a model that has none, or without it where it is needed.
        """
        return sum(
            self.flops_per_sequence_by_component(
                tokens, decoder_tokens=decoder_tokens, skip_masked=skip_masked
            ).values()
        )

    def flops_per_sequence_by_component(
        self, tokens: int, *, decoder_tokens: int | None = None, skip_masked: bool = True
    ) -> dict[str, int]:
        """`flops_per_sequence`, of each component."""
        check_whole("tokens", tokens, 0)
        if self.architecture.encoder_decoder != (decoder_tokens is not None):
            need = "needs" if self.architecture.encoder_decoder else "has no decoder apart and takes no"
            raise ValueError(f"{self.architecture.model_type} {need} decoder_tokens, got {decoder_tokens}")
        lengths = {"text": tokens}
        if decoder_tokens is not None:
            lengths = {"encoder": tokens, "decoder": check_whole("decoder_tokens", decoder_tokens, 0)}
        return self._flops(lengths, lambda part: part.pairs(lengths[part.queries], lengths[part.keys], skip_masked))

    def _refuse_two_kinds(self, name: str, value: int) -> None:
        if self.architecture.encoder_decoder:
            raise ValueError(
                f"{name}={value} says too little of an encoder-decoder like {self.architecture.model_type}, whose "
                "tokens are of two kinds; there is flops_per_sequence(tokens, decoder_tokens=...)"
            )

    def _flops(self, lengths: dict[str, int], pairs) -> dict[str, int]:
        """Sums over parts: what each token of its stream costs, and the pairs of attention."""
        sums = dict.fromkeys(COMPONENTS, 0)
        for part in self.architecture.parts:
            if isinstance(part, Attention):
                if part.queries in lengths:
                    sums[part.component] += part.flops_per_pair * pairs(part)
            else:
                sums[part.component] += part.flops_per_token * lengths.get(part.stream, 0)
        return {component: flops for component, flops in sums.items() if flops}

    def bytes(self, dtype: str | torch.dtype, *, experts: str | torch.dtype | None = None) -> int:
        """Bytes of all weights in ``dtype``; of the routed experts in another one, if ``experts`` names it.

        Example:
            >>> import moe_lab as ml
            >>> counts = ml.count("gpt-oss-20b")
            >>> round(counts.bytes("bfloat16", experts="mxfp4") / 2**30, 1)
            12.8
        """
        by_component = self.params_by_component
        special = by_component.pop("experts", 0)
        bits = sum(by_component.values()) * bits_of("dtype", dtype)
        bits += special * bits_of("experts", dtype if experts is None else experts)
        return -int(-bits // 8)

    def kv_cache_bytes(self, context: int, dtype: str | torch.dtype, *, sequences: int = 1) -> int:
        """Bytes that ``sequences`` of ``context`` tokens keep for attention, recurrent states included.

        A layer with a window keeps no more tokens than its window.

        Raises ValueError for an encoder-decoder, which caches tokens of two kinds.
        """
        check_size("context", context, 0)
        self._refuse_two_kinds("context", context)
        check_whole("sequences", sequences, 0)
        numbers = 0
        for part in self.architecture.parts:
            if isinstance(part, Attention) and part.queries != "image":
                numbers += part.cached * part.remembered(context)
            elif isinstance(part, State):
                numbers += part.elements
        return -int(-numbers * sequences * bits_of("dtype", dtype) // 8)

    def activation_bytes(self, tokens: int, dtype: str | torch.dtype) -> int:
        """Bytes that ``tokens`` tokens leave behind in a forward pass for the backward pass, nothing recomputed.

        What every matrix product and every norm gives out, and what an activation makes of it; attention's scores are
        not among it, as flash attention keeps none. A floor: frameworks keep casts and masks besides.
        """
        check_whole("tokens", tokens, 0)
        kept = sum(weight.kept * weight.uses for weight in self.architecture.weights if weight.stream != "image")
        return -int(-kept * tokens * bits_of("dtype", dtype) // 8)

    def rows(self, context: int = 4096) -> list[dict]:
        """One row a component: parameters, active parameters, and FLOPs a token at ``context``."""
        total, active = self.params_by_component, self.active_params_by_component
        flops = {} if self.architecture.encoder_decoder else self.flops_per_token_by_component(context)
        return [
            {
                "component": component,
                "params": total.get(component, 0),
                "active_params": active.get(component, 0),
                "flops_per_token": None if self.architecture.encoder_decoder else flops.get(component, 0),
            }
            for component in COMPONENTS
            if component in total or component in flops
        ]

    def as_dict(self, context: int = 4096) -> dict:
        """Everything in the table, for programs; `count` on the command line prints it with ``--json``."""
        a = self.architecture
        plain = not a.encoder_decoder
        return {
            "model_type": a.model_type,
            "num_layers": a.num_layers,
            "moe_layers": a.moe_layers,
            "num_experts": a.num_experts,
            "top_k": a.top_k,
            "embeddings": self.embeddings,
            "total_params": self.total_params,
            "active_params": self.active_params,
            "context": context,
            "flops_per_token": self.flops_per_token(context) if plain else None,
            "kv_cache_bytes_bfloat16": self.kv_cache_bytes(context, "bfloat16") if plain else None,
            "weight_bytes": {dtype: self.bytes(dtype) for dtype in ("float32", "bfloat16", "int8", "int4")},
            "components": self.rows(context),
            "remarks": list(a.remarks),
        }

    def table(self, context: int = 4096) -> str:
        """The rows as text, with their sums, and bytes in bfloat16."""
        rows = self.rows(context)
        sums = {"component": "total", "params": self.total_params, "active_params": self.active_params}
        sums["flops_per_token"] = None if self.architecture.encoder_decoder else self.flops_per_token(context)
        lines = [f"{'component':16} {'parameters':>20} {'active':>18} {'FLOPs a token':>20}"]
        for row in [*rows, sums]:
            flops = "-" if row["flops_per_token"] is None else f"{row['flops_per_token']:,}"
            lines.append(f"{row['component']:16} {row['params']:20,} {row['active_params']:18,} {flops:>20}")
        lines[-1:] = ["-" * len(lines[0]), lines[-1]]
        a = self.architecture
        lines += [
            "",
            f"{a.model_type}: {a.num_layers} layers, {a.moe_layers} with {a.num_experts} experts of which a token uses "
            f"{a.top_k}; active with embeddings={self.embeddings!r}",
            "FLOPs: an encoder-decoder has none a token; see flops_per_sequence(tokens, decoder_tokens=...)"
            if a.encoder_decoder
            else f"FLOPs: forward, with {context:,} tokens of context",
            f"bfloat16: weights {self.bytes('bfloat16') / 2**30:,.1f} GiB"
            + (
                ""
                if a.encoder_decoder
                else f", cache of one sequence of {context:,} tokens "
                f"{self.kv_cache_bytes(context, 'bfloat16') / 2**30:,.2f} GiB"
            ),
            *a.remarks,
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"Counts({self.architecture.model_type}: {self.total_params:,} parameters, {self.active_params:,} active "
            f"with embeddings={self.embeddings!r})"
        )


def count(config: object, *, embeddings: str = "both") -> Counts:
    """Count a model's parameters, FLOPs and bytes from its config, without building it.

    ``config``: a dict or a config of Transformers; the path of a ``config.json``, or of the folder that has one; or
    the name of a published model (`published_models`). ``embeddings`` says what of the embeddings counts as active:
    "both" input and output (Mistral, Qwen, AI2), "output" the projection only (OpenAI), "none" neither.

    Example:
        >>> import moe_lab as ml
        >>> counts = ml.count("mixtral-8x7b")
        >>> f"{counts.total_params / 1e9:.1f} B, {counts.active_params / 1e9:.1f} B active"
        '46.7 B, 12.9 B active'

    Raises ValueError or TypeError that names the field: an unknown ``model_type``, a field that is missing, or one
    whose value makes no sense. What the count does not cover it refuses.
    Source: each family's own report; see its function in `moe_lab.accounting.families`.
    """
    if not isinstance(embeddings, str) or embeddings not in EMBEDDINGS:
        raise ValueError(f"embeddings must be one of {', '.join(EMBEDDINGS)}; got {embeddings!r}")
    fields = Fields(read_config(config))
    model_type = fields.get("model_type", default=None)
    if model_type is None:
        raise ValueError("model_type is missing; it says which family the config belongs to")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        near = difflib.get_close_matches(str(model_type), FAMILIES, 3)
        hint = f"; similar: {', '.join(near)}" if near else f"; known: {', '.join(sorted(FAMILIES))}"
        raise ValueError(f"model_type={model_type!r:.80} is no family that can be counted{hint}")
    return Counts(FAMILIES[model_type](fields), embeddings)
