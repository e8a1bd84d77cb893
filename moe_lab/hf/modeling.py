"""Our language model as Transformers' own kind: a config, and a model whose experts its interface can run.

Nothing is written a second time. The model inside is `LanguageModel`, and its layers are `MoE`; only their experts move
into a module of their own, with the names and the layout that Transformers' experts interface knows. Importing
`moe_lab.hf` registers both classes, so that ``AutoModelForCausalLM.from_pretrained`` finds them: no code comes with a
checkpoint.
"""

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation
from transformers.modeling_outputs import CausalLMOutput

from moe_lab.config import LanguageModelConfig
from moe_lab.experts import expert_mlp
from moe_lab.hf.experts import as_routing
from moe_lab.layers import FeedForward, MoE
from moe_lab.lm import VOCABULARY, LanguageModel
from moe_lab.types import Routing


class MoeLabConfig(PreTrainedConfig):
    """The fields of a `LanguageModelConfig`, and the names under which Transformers looks for them.

    ``read_with`` is for whoever opens the file: what to import before Transformers knows this kind of model.

    Example:
        >>> config = MoeLabConfig(language_model={"d_model": 64, "num_experts": 8})
        >>> config.hidden_size, config.num_experts, config.sizes.top_k
        (64, 8, 2)

    Raises ValueError for a field that is unknown or cannot be.
    """

    __no_type_check__ = True  # Transformers makes this a dataclass that takes other fields too, which checkers misread
    model_type = "moe_lab"
    language_model: dict | None = None
    use_cache: bool = False
    read_with: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        try:
            _ = self.sizes
        except TypeError as error:  # an unknown field, or a value of another type
            raise ValueError(f"language_model: {error}") from error

    @property
    def sizes(self) -> LanguageModelConfig:
        """The config of the model inside."""
        return LanguageModelConfig(**(self.language_model or {}))

    hidden_size = property(lambda self: self.sizes.d_model)
    num_hidden_layers = property(lambda self: self.sizes.num_layers)
    num_attention_heads = property(lambda self: self.sizes.num_heads)
    max_position_embeddings = property(lambda self: self.sizes.context)
    num_experts = property(lambda self: self.sizes.num_experts)
    num_experts_per_tok = property(lambda self: self.sizes.top_k)
    vocab_size = property(lambda self: VOCABULARY)


@use_experts_implementation
class MoeLabExperts(nn.Module):
    """The experts of one `MoE`, where Transformers looks for experts: its implementations, and ours, take their place.

    What is here is "eager", the specification: one expert after the other.
    """

    def __init__(self, config: MoeLabConfig, w_gate_up: nn.Parameter, w_down: nn.Parameter):
        super().__init__()
        self.num_experts = w_down.shape[0]
        self.gate_up_proj, self.down_proj = w_gate_up, w_down
        self.act_fn = ACT2FN["silu"]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of what the chosen experts answer, for each row."""
        routing = as_routing(top_k_index, top_k_weights, self.num_experts)
        return expert_mlp(hidden_states, routing, self.gate_up_proj, self.down_proj, backend="loop")


class MoEOfExperts(MoE):
    """An `MoE` whose experts are a module: it routes as ever, and ``self.experts`` does the rest."""

    w_gate_up = property(lambda self: self.experts.gate_up_proj)
    w_down = property(lambda self: self.experts.down_proj)
    exchange = property(lambda self: self)  # whom `MoE.forward` asks for `expert_mlp`

    @classmethod
    def adopt(cls, layer: MoE, config: MoeLabConfig) -> None:
        """Move the experts of ``layer`` into a module; the layer stays where it is, and the weights are the same."""
        experts = MoeLabExperts(config, layer.w_gate_up, layer.w_down)
        experts._is_expert_parallel = True  # so that all implementations leave empty slots out
        del layer.w_gate_up, layer.w_down, layer.exchange
        layer.__class__ = cls
        layer.experts = experts

    def expert_mlp(self, x: Tensor, routing: Routing, *_weights: Tensor, **_options) -> Tensor:
        """Hand rows and routing to the experts; an empty slot is the expert behind the last, as Transformers has it."""
        index = routing.experts.masked_fill(routing.experts < 0, self.num_experts)
        return self.experts(x, index, routing.weights)


class MoeLabForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` that Transformers loads, trains, writes with, and whose experts it can swap.

    Tokens are bytes. There is no cache: ``generate`` runs the whole text for every byte, and past the context its last
    ``context`` bytes, as `LanguageModel.write` does. Texts of a batch may be padded on the right to compute a loss or
    logits, not to generate, and not on the left: positions are counted from the first byte. Training leaves balancing
    biases as they are, unless the loop calls ``update_balancer`` of each layer in ``language_model.layers``.

    Example:
        >>> model = MoeLabForCausalLM(MoeLabConfig(language_model={"d_model": 16, "num_layers": 1, "num_experts": 4}))
        >>> import torch
        >>> ids = torch.tensor([list(b"def ")])
        >>> model(ids, labels=ids).loss.item() > 5, model.generate(ids, max_new_tokens=3).shape
        (True, torch.Size([1, 7]))

    Raises ValueError for more than ``context`` bytes, for padding that the model cannot leave out, for a mask of
    another shape.
    """

    config_class = MoeLabConfig
    main_input_name = "input_ids"
    _no_split_modules = ("Block",)

    def __init__(self, config: MoeLabConfig, language_model: LanguageModel | None = None):
        super().__init__(config)
        self.language_model = LanguageModel(config.sizes) if language_model is None else language_model
        for layer in self.language_model.layers:
            MoEOfExperts.adopt(layer, config)
        for tensor in (*self.parameters(), *self.buffers()):
            tensor._is_hf_initialized = not tensor.is_meta  # drawn by our own constructors, not to be drawn again
        self.generation_config.use_cache = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput | tuple:
        """Logits of the byte after each position, and with ``labels`` (-100 is left out) their mean loss in nats."""
        check_mask(attention_mask, input_ids)
        logits = self.language_model(input_ids)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=VOCABULARY)
        output = CausalLMOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_unused
    ) -> dict[str, Tensor]:
        """The last ``context`` bytes, all of them in every step."""
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("attention_mask must be all ones to generate: give texts of one length, or one by one")
        return {"input_ids": input_ids[:, -self.config.sizes.context :]}

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of a byte."""
        return self.language_model.embedding

    def get_output_embeddings(self) -> nn.Linear:
        """The projection to logits; never tied to the embedding."""
        return self.language_model.head

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Draw what a checkpoint lacks; Transformers says which weights those were."""
        super()._init_weights(module)
        if isinstance(module, MoE | MoeLabExperts | FeedForward | LanguageModel):
            for weight in module.parameters(recurse=False):
                init.normal_(weight, std=weight.shape[-1] ** -0.5)
        for buffer in module.buffers(recurse=False):
            init.zeros_(buffer)


def check_mask(attention_mask: Tensor | None, input_ids: Tensor) -> None:
    """Refuse padding that attention would see: zeros anywhere but at the end of a text.

    Example:
        >>> import torch
        >>> check_mask(torch.tensor([[1, 1, 0]]), torch.zeros(1, 3, dtype=torch.int64))
        >>> check_mask(torch.tensor([[0, 1, 1]]), torch.zeros(1, 3, dtype=torch.int64))
        Traceback (most recent call last):
            ...
        ValueError: attention_mask must be ones, then zeros: this model has no padding on the left
    """
    if attention_mask is None:
        return
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask must be {tuple(input_ids.shape)}, got {tuple(attention_mask.shape)}")
    seen = attention_mask.bool()
    if bool((seen[:, 1:] & ~seen[:, :-1]).any()):
        raise ValueError("attention_mask must be ones, then zeros: this model has no padding on the left")


AutoConfig.register("moe_lab", MoeLabConfig, exist_ok=True)
AutoModelForCausalLM.register(MoeLabConfig, MoeLabForCausalLM, exist_ok=True)
