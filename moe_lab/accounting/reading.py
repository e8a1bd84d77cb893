"""Finding a config: in a dict, in a file, or among the published models."""

import json
from collections.abc import Mapping
from pathlib import Path

from moe_lab.models import published
from moe_lab.paths import check_file


def read_config(config: object) -> Mapping:
    """The fields of a config, however it was named; see `count`."""
    if isinstance(config, Mapping):
        return config
    if hasattr(config, "to_dict"):
        return config.to_dict()
    if not isinstance(config, str | Path):
        raise TypeError(f"config must be a dict, a path or a name, got {type(config).__name__}")
    if is_name(config):
        return published(config).config
    path = Path(config)
    if path.is_dir():
        path = path / "config.json"
    try:
        check_file(path, "config")
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"config: {path} is not JSON that can be read ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a {type(values).__name__}, not an object with named fields")
    return values["config"] if "published" in values and isinstance(values.get("config"), dict) else values


def is_name(config: object) -> bool:
    """Whether this names a published model; what exists as a file, ends in .json or has a slash is a path."""
    if not isinstance(config, str):
        return False
    if len(config) > 200 or "\n" in config:
        raise ValueError(f"config must be a dict, the path of a file, or a name; got a text that begins {config!r:.60}")
    path = Path(config)
    return not path.exists() and path.suffix != ".json" and "/" not in config and "\\" not in config
