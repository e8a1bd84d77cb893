"""A small language model over bytes whose feed-forward layers are MoEs, or dense to compare with."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from moe_lab.activations import hidden_columns
from moe_lab.balancers import BALANCERS
from moe_lab.checkpoint import read_config, read_tensors, write_json, write_tensors
from moe_lab.checks import check_number, check_whole
from moe_lab.config import LanguageModelConfig
from moe_lab.folders import DATA
from moe_lab.layers import FeedForward, MoE
from moe_lab.routers import find_method, options_of, required_options
from moe_lab.types import Routing
from moe_lab.writing import write_whole

VOCABULARY = 256  # bytes
SHIPPED = DATA / "checkpoints" / "stdlib-moe"


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Float[Tensor, "batch length d_model"]) -> Float[Tensor, "batch length d_model"]:
        """Let every position look at itself and at those before it."""
        batch, length, d_model = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, d_model // self.num_heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        return self.out(seen.transpose(1, 2).reshape(batch, length, d_model))


class Block(nn.Module):
    """Attention, then experts or a dense layer, each added to the residual stream."""

    def __init__(self, config: LanguageModelConfig, num_experts: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model)
        self.attention = Attention(config.d_model, config.num_heads)
        self.moe_norm = nn.RMSNorm(config.d_model)
        if num_experts:
            self.moe = make_experts(config, num_experts)
        else:
            self.moe = FeedForward(config.d_model, config.d_expert)

    def forward(self, x: Float[Tensor, "batch length d_model"]) -> Float[Tensor, "batch length d_model"]:
        """Residual in, residual out."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.moe(self.moe_norm(x))


def make_experts(config: LanguageModelConfig, num_experts: int) -> MoE:
    """The MoE layer of a config; raises ValueError for a method that cannot work in a language model."""
    for name in {config.method, config.eval_method or config.method}:
        method = find_method(name)
        if config.bias_rate and "bias" not in options_of(method):
            raise ValueError(f"method {name!r} takes no bias; set bias_rate to 0, got {config.bias_rate}")
        if needed := [o for o in required_options(method) if o not in config.router_options]:
            raise ValueError(f"method {name!r} needs {', '.join(needed)}, which the model cannot give")
    if config.balancer not in BALANCERS:
        raise ValueError(f"balancer must be one of {', '.join(BALANCERS)}; got {config.balancer!r}")
    balancer = BALANCERS[config.balancer](num_experts, config.bias_rate) if config.bias_rate else None
    return MoE(
        config.d_model,
        config.d_expert,
        num_experts,
        config.top_k,
        method=config.method,
        num_shared=config.num_shared,
        mix_shared=config.mix_shared,
        balancer=balancer,
        eval_method=config.eval_method or None,
        **config.router_options,
    )


class LanguageModel(nn.Module):
    """Bytes in, logits of the next byte out.

    Embedding + learned positions -> blocks of (attention, MoE) -> norm -> logits over 256 bytes.

    Example:
        >>> model = LanguageModel(LanguageModelConfig(d_model=16, num_layers=2, num_heads=2, num_experts=4))
        >>> model(torch.tensor([[104, 105]])).shape
        torch.Size([1, 2, 256])
        >>> [routing.slots for routing in model.read("hi")]
        [2, 2]

    Raises ValueError for text longer than ``config.context``.
    """

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config.d_model)
        self.position = nn.Parameter(torch.empty(config.context, config.d_model))
        self.blocks = nn.ModuleList(Block(config, num_experts) for num_experts in config.experts_by_layer)
        self.norm = nn.RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, VOCABULARY, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        nn.init.zeros_(self.head.weight)  # so that training starts at log(256), whatever the seed

    def forward(self, bytes_in: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length 256"]:
        """Logits of the byte that follows each position."""
        length = bytes_in.shape[1]
        if length > self.config.context:
            raise ValueError(f"text must have at most context={self.config.context} bytes, got {length}")
        x = self.embedding(bytes_in) + self.position[:length]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @property
    def layers(self) -> list[MoE]:
        """The MoE layers, in order; dense ones are not among them."""
        return [block.moe for block in self.blocks if isinstance(block.moe, MoE)]

    @torch.no_grad()
    def read(self, text: str) -> list[Routing]:
        """Run a text through the model; one `Routing` a layer, one token a UTF-8 byte."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        codes = torch.tensor([list(text.encode())], dtype=torch.int64, device=self.position.device)
        self(codes)
        return [layer.routing for layer in self.layers]

    @torch.no_grad()
    def write(self, prompt: str, count: int, temperature: float = 0.0, seed: int = 0) -> str:
        """Continue a prompt by ``count`` bytes: the likeliest ones, or drawn at a temperature above 0.

        Raises ValueError for weights whose logits are not finite.
        """
        check_whole("count", count, 0)
        check_number("temperature", temperature, at_least=0)
        draw = torch.Generator().manual_seed(seed)
        codes = list(prompt.encode()) or [10]
        start = len(codes)
        for _ in range(count):
            logits = self(torch.tensor([codes[-self.config.context :]], device=self.position.device))[0, -1].cpu()
            if not bool(logits.isfinite().all()):  # the greatest of NaNs is a byte like any other
                raise ValueError(f"logits of byte {len(codes) - start} are not finite; the weights must be")
            if temperature > 0:
                codes.append(
                    int(torch.multinomial((logits.double() / max(temperature, 1e-6)).softmax(0), 1, generator=draw))
                )
            else:
                codes.append(int(logits.argmax()))
        return bytes(codes[start:]).decode(errors="replace")

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``; ``dtype`` rounds the weights on the way, but no counts.

        Raises ValueError for a weight that ``dtype`` cannot hold.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
        folder = Path(folder)
        tensors = {name: _rounded(name, tensor, dtype).contiguous() for name, tensor in self.state_dict().items()}
        write_whole(folder / "model.safetensors", lambda path: write_tensors(path, tensors))
        write_json(folder / "config.json", dataclasses.asdict(self.config))


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight in ``dtype``, if that is given; counts stay whole numbers."""
    if dtype is None or not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if bool((rounded.isinf() & tensor.isfinite()).any()):
        raise ValueError(f"dtype {dtype} cannot hold {name}, whose largest number is {float(tensor.abs().max()):.3g}")
    return rounded


def _refuse_other_sizes(config: LanguageModelConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    """Refuse sizes that the weights do not have, before a model of any size is built."""
    for name, shape in _shapes_of_sizes(config):
        found = tuple(tensors[name].shape) if name in tensors else "none"
        if found != shape:
            raise ValueError(f"the weights in {folder} do not fit its config.json: {name} must be {shape}, got {found}")


def _shapes_of_sizes(config: LanguageModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors that show every size of a config between them, one after the other: there may be a million layers."""
    d_model, hidden = config.d_model, hidden_columns("swiglu", config.d_expert)
    yield "position", (config.context, d_model)
    for number, experts in enumerate(config.experts_by_layer):
        moe = f"blocks.{number}.moe"
        yield f"{moe}.w_gate_up", (experts, hidden, d_model) if experts else (hidden, d_model)
        if experts and config.num_shared:
            yield f"{moe}.shared_gate_up", (config.num_shared * hidden, d_model)


def load_model(folder: str | Path = SHIPPED) -> LanguageModel:
    """Load what `LanguageModel.save` wrote, as float32, ready to be read with; by default the model of the lessons.

    Example:
        >>> import tempfile
        >>> model = LanguageModel(LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, num_experts=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(Path(folder))
        ...     load_model(folder).config == model.config
        True

    Raises FileNotFoundError for a folder without the two files; ValueError, with the path, for truncated JSON, a
    config that no model can have, a damaged weight file, or weights that do not fit the config.
    """
    folder = Path(folder)
    config = read_config(LanguageModelConfig, folder / "config.json")
    tensors = read_tensors(folder / "model.safetensors")
    _refuse_other_sizes(config, tensors, folder)
    try:
        model = LanguageModel(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    try:
        wide = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        model.load_state_dict(wide)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from error
    return model.eval()
