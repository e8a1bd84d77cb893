"""Expert roofline: how many rows an expert sees, and what a device then allows it at best."""

from collections.abc import Sequence
from dataclasses import asdict
from decimal import ROUND_HALF_UP, Context
from pathlib import Path

import traitlets

from moe_lab.checks import check_number, check_whole
from moe_lab.roofline import (
    DEVICES,
    DIRECTIONS,
    SHAPES,
    Bound,
    Device,
    LayerShape,
    attainable,
    compute_bound_from,
    each_expert,
    expert_cost,
    measured_devices,
    tokens_per_expert,
)
from moe_lab.widgets.lab_widget import LabWidget

CUSTOM = "custom"
SKEWS = (1.0, 2.5, 7.0)
MOST_TOKENS, MOST_EXPERTS, MOST_TOP_K, MOST_WIDTH = 2**20, 512, 16, 2**24


class ExpertRoofline(LabWidget):
    """Show where the experts of a layer lie under the roofline of a device, beside the equal-FLOP dense layer.

    ``devices`` are those to choose from: by default the machines whose ceilings were recorded, then the data sheets;
    ``device`` names one of them, the first if left out, and ``dtype`` one of its dtypes. ``model`` names one of
    `SHAPES` or is a `LayerShape` of your own; another ``num_experts`` or ``top_k`` makes it "custom". ``skew`` is how
    many times its mean the busiest expert gets, as far as num_experts / top_k allows; the others follow Zipf's law.
    The numbers are those of `moe_lab.roofline`.

    Example:
        >>> ExpertRoofline("H200", tokens=64)  # doctest: +NORMALIZE_WHITESPACE
        ExpertRoofline: Qwen3-30B-A3B on H200 (data sheet), bfloat16, forward: at 64 tokens an expert sees 4 rows on
        average. Experts: 4.06 FLOP/byte, limited by memory, at most 19.5 TFLOP/s, at least 0.248 ms. Dense layer of
        equal FLOPs: 63.6 FLOP/byte, limited by memory, at most 305 TFLOP/s, at least 15.8 µs. Compute limits the
        experts from 3,374 tokens on, the dense layer from 211 tokens on.

    Raises ValueError or TypeError for no devices or two of a name, an unknown device, model, dtype, direction or skew,
    tokens outside 1..1048576, widths above 16777216, num_experts outside 1..512, and top_k outside 1..16 or above
    num_experts.
    """

    _esm = Path(__file__).with_name("expert_roofline.js")
    _css = Path(__file__).with_name("expert_roofline.css")
    of_the_reader = ("device", "model", "d_model", "d_expert", "num_experts", "top_k", "tokens", "dtype")
    of_the_reader += ("direction", "skew")

    devices = traitlets.List(traitlets.Dict()).tag(sync=True)
    models = traitlets.Dict().tag(sync=True)
    device = traitlets.Unicode().tag(sync=True)
    model = traitlets.Unicode().tag(sync=True)
    d_model = traitlets.Int(1, min=1, max=MOST_WIDTH).tag(sync=True)
    d_expert = traitlets.Int(1, min=1, max=MOST_WIDTH).tag(sync=True)
    num_experts = traitlets.Int(1, min=1, max=MOST_EXPERTS).tag(sync=True)
    top_k = traitlets.Int(1, min=1, max=MOST_TOP_K).tag(sync=True)
    tokens = traitlets.Int(64, min=1, max=MOST_TOKENS).tag(sync=True)
    dtype = traitlets.Unicode().tag(sync=True)
    direction = traitlets.Enum(DIRECTIONS, "forward").tag(sync=True)
    skew = traitlets.Enum(SKEWS, 1.0).tag(sync=True)

    def __init__(
        self,
        device: str | None = None,
        model: str | LayerShape = "Qwen3-30B-A3B",
        tokens: int = 64,
        dtype: str | None = None,
        direction: str = "forward",
        skew: float | int = 1.0,
        num_experts: int | None = None,
        top_k: int | None = None,
        devices: Sequence[Device] | None = None,
    ):
        devices = [*measured_devices(), *DEVICES.values()] if devices is None else list(devices)
        self._devices = {one.name: one for one in devices}
        if not devices or len(self._devices) < len(devices):
            raise ValueError(f"devices must be at least one, each with its own name; got {[d.name for d in devices]}")
        device = devices[0].name if device is None else device
        name, shape = (CUSTOM, model) if isinstance(model, LayerShape) else (model, SHAPES.get(model))
        choices = (("device", device, self._devices), ("model", name, [*SHAPES, CUSTOM] if shape else SHAPES))
        for argument, value, allowed in (*choices, ("direction", direction, DIRECTIONS)):
            if value not in allowed:
                raise ValueError(f"{argument} must be one of {', '.join(allowed)}; got {value!r}")
        if check_number("skew", skew) not in SKEWS:
            raise ValueError(f"skew must be one of {', '.join(f'{one:g}' for one in SKEWS)}; got {skew!r}")
        num_experts = shape.num_experts if num_experts is None else num_experts
        sizes = {
            "d_model": shape.d_model,
            "d_expert": shape.d_expert,
            "num_experts": check_whole("num_experts", num_experts, 1, MOST_EXPERTS),
            "top_k": check_whole("top_k", shape.top_k if top_k is None else top_k, 1, min(MOST_TOP_K, num_experts)),
        }
        dtype = next(iter(self._devices[device].flops_per_s)) if dtype is None else dtype
        self._devices[device].peak(dtype)  # refuses a dtype that the device lacks
        super().__init__(
            devices=[asdict(one) for one in devices],
            models={name: asdict(one) for name, one in SHAPES.items()},
            device=device,
            model=name if sizes == asdict(shape) else CUSTOM,
            **sizes,
            tokens=check_whole("tokens", tokens, 1, MOST_TOKENS),
            dtype=dtype,
            direction=direction,
            skew=float(skew),
        )
        # only now, or the sizes would be compared while some of them are missing
        self.observe(self._fit_dtype, "device")
        self.observe(self._fit_sizes, "model")
        self.observe(self._fit_top_k, "num_experts")
        self.observe(self._fit_model, ["d_model", "d_expert", "num_experts", "top_k"])

    @property
    def shape(self) -> LayerShape:
        """The sizes that are shown."""
        return LayerShape(self.d_model, self.d_expert, self.num_experts, self.top_k)

    @property
    def max_over_mean(self) -> float:
        """The skew, as far as it is possible: no expert gets more than every token."""
        return min(self.skew, self.num_experts / self.top_k)

    def bound(self, shape: LayerShape) -> tuple[float, Bound, int | None]:
        """FLOP/byte of a layer's experts in the present state, what the device allows, and where compute limits."""
        skew = self.max_over_mean if shape.num_experts > 1 else 1.0
        how = {"direction": self.direction, "dtype": self.dtype, "max_over_mean": skew}
        cost, device = expert_cost(shape, self.tokens, **how), self._devices[self.device]
        return cost.intensity, attainable(cost, device, self.dtype), compute_bound_from(shape, device, **how)

    def by_memory(self) -> int:
        """How many experts memory would limit, each taken alone."""
        how = {"direction": self.direction, "dtype": self.dtype, "max_over_mean": self.max_over_mean}
        ridge = self._devices[self.device].ridge(self.dtype)
        return sum(cost.intensity < ridge for _, cost in each_expert(self.shape, self.tokens, **how))

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here."""
        experts = "1 expert" if self.num_experts == 1 else f"{self.num_experts} experts"
        name = f"Top-{self.top_k} of {experts}" if self.model == CUSTOM else self.model
        batch = "1 token" if self.tokens == 1 else f"{self.tokens:,} tokens"
        kind = self._devices[self.device].kind
        rows, often = tokens_per_expert(self.tokens, self.num_experts, self.top_k), self.max_over_mean
        busiest = ""
        if often > 1:
            every = " (every token)" if often == self.num_experts / self.top_k else ""
            busiest = (
                f", the busiest {three_digits(rows * often)}{every}; "
                f"{self.by_memory()} of {self.num_experts} experts alone are limited by memory"
            )
        (sparse, sparse_from), (dense, dense_from) = map(self._say, (self.shape, self.shape.dense))
        return (
            f"{name} on {self.device} ({kind}), {self.dtype}, {self.direction}: at {batch} an expert sees "
            f"{three_digits(rows)} {'row' if rows == 1 else 'rows'} on average{busiest}. "
            f"Experts: {sparse}. Dense layer of equal FLOPs: {dense}. "
            f"Compute limits the experts {sparse_from}, the dense layer {dense_from}."
        )

    def __repr__(self) -> str:
        return f"ExpertRoofline: {self.summary()}"

    def _say(self, shape: LayerShape) -> tuple[str, str]:
        intensity, bound, start = self.bound(shape)
        found = (
            f"{three_digits(intensity)} FLOP/byte, limited by {bound.limit}, "
            f"at most {say_rate(bound.flops_per_s)}, at least {say_time(bound.time_ms)}"
        )
        if start is None:
            return found, "at no number of tokens"
        return found, f"from {start:,} {'token' if start == 1 else 'tokens'} on"

    @traitlets.validate("device", "model")
    def _check_name(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        allowed = self._devices if name == "device" else [*SHAPES, CUSTOM]
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        return value

    @traitlets.validate("dtype")
    def _check_dtype(self, proposal):
        self._devices[self.device].peak(proposal["value"])
        return proposal["value"]

    @traitlets.validate("top_k")
    def _check_top_k(self, proposal):
        return check_whole("top_k", proposal["value"], 1, min(MOST_TOP_K, self.num_experts))

    def _fit_dtype(self, _change):
        known = self._devices[self.device].flops_per_s
        self.dtype = self.dtype if self.dtype in known else next(iter(known))

    def _fit_sizes(self, _change):
        if self.model != CUSTOM:
            with self.hold_trait_notifications():
                for name, size in asdict(SHAPES[self.model]).items():
                    setattr(self, name, size)

    def _fit_top_k(self, _change):
        self.top_k = min(self.top_k, self.num_experts)

    def _fit_model(self, _change):
        if self.shape != SHAPES.get(self.model):
            self.model = CUSTOM


def three_digits(value: float | int) -> str:
    """A number by its first three digits, a half upwards, as the browser has it.

    Example:
        >>> three_digits(0.03125), three_digits(4.0), three_digits(1234.5)
        ('0.0313', '4', '1,230')
    """
    text = f"{Context(prec=3, rounding=ROUND_HALF_UP).create_decimal(value):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def say_rate(flops_per_s: float | int) -> str:
    """A rate with the unit in which it reads best.

    Example:
        >>> say_rate(989.4e12), say_rate(2.5e9)
        ('989 TFLOP/s', '2.5 GFLOP/s')
    """
    unit, size = ("T", 1e12) if flops_per_s >= 1e12 else ("G", 1e9)
    return f"{three_digits(flops_per_s / size)} {unit}FLOP/s"


def say_time(time_ms: float | int) -> str:
    """A time with the unit in which it reads best.

    Example:
        >>> say_time(0.02), say_time(0.1), say_time(1500)
        ('20 µs', '0.1 ms', '1.5 s')
    """
    if time_ms >= 1e3:
        return f"{three_digits(time_ms / 1e3)} s"
    return f"{three_digits(time_ms)} ms" if time_ms >= 0.1 else f"{three_digits(time_ms * 1e3)} µs"
