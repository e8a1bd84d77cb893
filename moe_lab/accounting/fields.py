"""Reading a config, so that nothing is guessed: every field is checked, and an error names it."""

import difflib
from collections.abc import Mapping, Sequence

from moe_lab.checks import check_size, check_whole

REQUIRED = object()
"""The default of a field that has none: without it, there is no count."""


class Fields:
    """The fields of one config, read by name.

    Several names are one field under the names that different releases gave it; the first that is there counts. A
    field that is absent has its family's ``default``, or else is missed. One that is ``null`` is taken for absent,
    unless ``null`` says what it stands for: to Transformers the two may differ, as an absent q_lora_rank is 1536 to
    DeepSeek-V3, and null is none.

    Example:
        >>> fields = Fields({"model_type": "mixtral", "hidden_size": 64, "head_dim": None})
        >>> fields.size("hidden_size"), fields.size("head_dim", default=16)
        (64, 16)
        >>> fields.size("vocab_size")
        Traceback (most recent call last):
        ValueError: vocab_size is missing, and a mixtral config cannot be counted without it
    """

    def __init__(self, values: Mapping, inside: str = "") -> None:
        if not isinstance(values, Mapping):
            raise TypeError(f"{inside or 'config'} must be an object with named fields, got {values!r:.80}")
        self.values, self.inside = values, inside
        self.kind = values.get("model_type")

    def get(self, *names: str, default: object = REQUIRED, null: object = REQUIRED) -> object:
        """The value of the first name that is there, or what stands in for it."""
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        if null is not REQUIRED and any(name in self.values for name in names):
            return null
        if default is not REQUIRED:
            return default
        present = [str(name) for name, value in self.values.items() if value is not None]
        near = difflib.get_close_matches(names[0], present, 1, 0.8)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        of = f"{self.kind} config" if isinstance(self.kind, str) else "config"
        raise ValueError(f"{self.name(*names)} is missing, and a {of} cannot be counted without it{hint}")

    def name(self, *names: str) -> str:
        """What an error calls the field: the name that is there, or else the first, and where it is."""
        present = [name for name in names if self.values.get(name) is not None]
        return f"{self.inside}.{(present or names)[0]}" if self.inside else (present or names)[0]

    def size(
        self,
        *names: str,
        default: object = REQUIRED,
        null: object = REQUIRED,
        low: int = 1,
        high: int | None = None,
    ):
        """A whole number of at least 1 (or ``low``); what stands in for a missing one is handed out unchecked."""
        value = self.get(*names, default=default, null=null)
        return value if value is default or value is null else check_size(self.name(*names), value, low, high)

    def flag(self, name: str, default: bool) -> bool:
        """True or false, and nothing that could be taken for it; null is false, as it is to Python."""
        value = self.get(name, default=default, null=False)
        if not isinstance(value, bool):
            raise TypeError(f"{self.name(name)} must be true or false, got {value!r}")
        return value

    def choice(self, name: str, allowed: Sequence[object], default: object = REQUIRED, null: object = REQUIRED):
        """One of the values that the count knows."""
        value = self.get(name, default=default, null=null)
        if value not in allowed:
            raise ValueError(f"{self.name(name)} must be one of {', '.join(map(str, allowed))}; got {value!r}")
        return value

    def entries(self, name: str, default: object = REQUIRED) -> object:
        """A list, as it is; what is in it is the family's to check."""
        value = self.get(name, default=default)
        if value is not default and not isinstance(value, list | tuple):
            raise TypeError(f"{self.name(name)} must be a list, got {value!r:.80}")
        return value

    def per_layer(self, name: str, layers: int, allowed: Sequence[str], default: object = REQUIRED):
        """A list with one word a layer."""
        value = self.entries(name, default)
        if value is default:
            return value
        if len(value) != layers:
            raise ValueError(f"{self.name(name)} must have one entry for each of {layers} layers, got {len(value)}")
        for entry in value:
            if entry not in allowed:
                raise ValueError(f"{self.name(name)} may hold {', '.join(allowed)}; got {entry!r}")
        return value

    def layer_numbers(self, name: str, layers: int, default: object = REQUIRED):
        """A list of layers by number, from 0."""
        value = self.entries(name, default)
        return value if value is default else [check_whole(self.name(name), entry, 0, layers - 1) for entry in value]

    def inner(self, name: str) -> "Fields":
        """The fields of a config within this one."""
        return Fields(self.get(name), f"{self.inside}.{name}" if self.inside else name)

    def refuse(self, name: str, why: str, harmless: Sequence[object] = (None, False)) -> None:
        """Refuse a value that the count does not cover, instead of ignoring it."""
        if self.values.get(name) not in harmless:
            raise ValueError(f"{self.name(name)}={self.values[name]!r} is not counted: {why}")
