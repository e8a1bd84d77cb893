"""A design: the config of a model, its router, its number format, and the devices that hold its experts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from moe_lab.checkpoint import read_json
from moe_lab.checks import check_whole
from moe_lab.paths import check_new_or_ours
from moe_lab.roofline import check_dtype
from moe_lab.routers import find_method
from moe_lab.writing import write_whole

SAME = (
    ("num_experts", "num_local_experts", "n_routed_experts"),
    ("num_experts_per_tok", "moe_topk", "top_k"),
    ("torch_dtype", "dtype"),
)
"""Fields that are one under several names: where a config has two of them, they must agree."""

DRAWN = ("generator", "token_ids")
"""Options of routers that the grader supplies."""


@dataclass(frozen=True)
class Design:
    """An answer to a brief.

    ``config`` is a dict as Transformers has it, of any family that `moe_lab.count` reads. ``method`` and ``options``
    name a router; what is chosen, and what is drawn, comes with the batch. Every number is stored in ``dtype``.
    Experts live on ``devices`` devices in equal blocks, in order, or with ``extra_experts`` replicas where
    `place_experts` puts them; all else is on every device.

    Example:
        >>> import moe_lab as ml
        >>> Design(ml.published("mixtral-8x7b").config).devices
        1
        >>> Design({"model_type": "mixtral", "num_experts": 8, "num_local_experts": 64})
        Traceback (most recent call last):
        ValueError: config: num_local_experts must equal num_experts=8, they are one field; got 64

    Raises TypeError for a config that is no dict and options that are none; ValueError for an unknown method or dtype,
    options that come with the batch, devices below 1, extra_experts below 0, and a config that contradicts itself or
    the design.
    """

    config: object  # a dict; anything else is refused in words
    method: str = "top_k"
    options: object = field(default_factory=dict)
    dtype: str = "bfloat16"
    devices: int = 1
    extra_experts: int = 0

    def __post_init__(self):
        for name in ("config", "options"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} must be a dict, got {type(getattr(self, name)).__name__}")
        find_method(self.method)
        for name in DRAWN:
            if name in self.options:
                raise ValueError(f"options: {name} comes with the batch, and is no part of a design")
        check_dtype(self.dtype)
        check_whole("devices", self.devices, 1)
        check_whole("extra_experts", self.extra_experts, 0)
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        for names in SAME:
            (first, value), *others = [(name, self.config[name]) for name in names if name in self.config] or [("", 0)]
            for name, other in others:
                if other != value:
                    raise ValueError(
                        f"config: {name} must equal {first}={value!r}, they are one field; got {other!r:.80}"
                    )
        stored = self.config.get("torch_dtype", self.config.get("dtype", self.dtype))
        if str(stored).removeprefix("torch.") != self.dtype:
            raise ValueError(f"dtype must be what the config says, {stored!r:.80}; got {self.dtype!r}")
        groups, asked = self.config.get("n_group"), self.options.get("num_groups", 1)
        if groups not in (None, 1) and groups != asked:
            raise ValueError(f"options: num_groups must be the config's n_group={groups!r:.80}, got {asked!r:.80}")

    def as_dict(self) -> dict:
        """Everything, as JSON can hold it."""
        return asdict(self)


def read_design(source: object) -> Design:
    """A design from a dict, or from the JSON file that has one.

    Raises ValueError for a field that a design does not have, and for one without a config; OSError for no such file.
    """
    values = source if isinstance(source, Mapping) else read_json(Path(source))
    if not isinstance(values, Mapping):
        raise TypeError(f"a design must be an object with named fields, got {type(values).__name__}")
    known = [one.name for one in fields(Design)]
    for name in values:
        if name not in known:
            raise ValueError(f"{name!r:.80} is no field of a design; it has {', '.join(known)}")
    if "config" not in values:
        raise ValueError("config is missing: a design needs the config of a model")
    return Design(**values)


def write_design(design: Design, path: Path) -> Path:
    """Write a design as JSON, for ``python -m moe_lab grade``.

    Raises TypeError where JSON cannot hold it; ValueError for a file of that name that is no design; CannotWrite.
    """
    text = json.dumps(design.as_dict(), indent=2) + "\n"
    return write_whole(check_new_or_ours(path, '{\n  "config":'), text)
