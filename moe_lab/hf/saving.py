"""Recordings as files: JSON for people, Parquet for data frames; both hold everything, and both are read back."""

import json
from pathlib import Path

import torch
from torch import Tensor

from moe_lab.checkpoint import read_json, write_json
from moe_lab.checks import check_whole
from moe_lab.hf.recording import Recording
from moe_lab.hf.ring import Ring
from moe_lab.hf.watched_layer import WatchedLayer
from moe_lab.paths import RECORDING_BYTES, check_file, check_new_or_ours
from moe_lab.writing import write_whole

FORMAT = "moe_lab.watch 1"
COUNTS = ("top_k", "tokens", "calls", "padded", "recomputed", "aligned")


def save_recording(recording: Recording, path: Path) -> Path:
    """Write to a .json or .parquet file, which is there whole or not at all.

    JSON: ``format``, ``about``, ``layers`` with their loads and kept rows, ``token_ids``. Parquet: a row a layer and
    kept token, with the columns layer, position, token_id, experts, weights; the rest is in the file's metadata.

    Raises ValueError for another ending, and for a file of that name that is no such recording (of a Parquet file, that
    is none); CannotWrite.
    """
    if path.suffix == ".json":
        layers = [head_of(layer) | rows_of(layer) for layer in recording.layers]
        ids = recording.token_ids
        about = {"format": FORMAT, "about": recording.about, "keep": recording.ids_kept.size}
        check_new_or_ours(path, f'{{\n  "format": "{FORMAT}"')
        write_json(path, about | {"layers": layers, "token_ids": None if ids is None else ids.tolist()})
    elif path.suffix == ".parquet":
        check_new_or_ours(path, "PAR1")
        _write_parquet(recording, path)
    else:
        raise ValueError(f"path must end in .json or .parquet, got {path.name!r}")
    return path


def load_watch(path: str | Path) -> Recording:
    """Read what `Recording.save` wrote: the same layers, token ids, table, plot and report.

    Example:
        >>> import tempfile
        >>> from moe_lab import MoE, hf
        >>> model = MoE(8, 16, num_experts=4, top_k=2)
        >>> with hf.watch(model) as seen, tempfile.TemporaryDirectory() as folder:
        ...     _ = model(torch.randn(5, 8))
        ...     again = load_watch(seen.save(Path(folder, "seen.json")))
        >>> again.table() == seen.table(), torch.equal(again.layers[0].experts, seen.layers[0].experts)
        (True, True)

    Raises FileNotFoundError for no file; ValueError, with the path, for another ending, and for a file that is damaged
    or was written by something else.
    """
    path = Path(path)
    if path.suffix not in (".json", ".parquet"):
        raise ValueError(f"path must end in .json or .parquet, got {path.name!r}")
    values = read_json(path, RECORDING_BYTES) if path.suffix == ".json" else _read_parquet(path)
    if values.get("format") != FORMAT:
        raise ValueError(f"{path} is not a recording of a watch ({FORMAT}), its format is {values.get('format')!r}")
    try:
        return _as_recording(values)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def head_of(layer: WatchedLayer) -> dict:
    """A layer without its kept rows."""
    counts = {name: getattr(layer, name) for name in COUNTS}
    names = {"name": layer.name, "also": list(layer.also), "num_experts": layer.num_experts}
    return names | counts | {"load": layer.load.tolist(), "dtype": str(layer.weights.dtype).removeprefix("torch.")}


def rows_of(layer: WatchedLayer) -> dict:
    """The kept rows of a layer."""
    return {"experts": layer.experts.tolist(), "weights": layer.weights.tolist()}


def _as_recording(values: dict) -> Recording:
    from moe_lab.hf.report import what_ran

    layers = [_as_layer(entry, values["keep"]) for entry in values["layers"]]
    if not layers:
        raise ValueError("no layers")
    ids = Ring(values["keep"], torch.int64, empty=-1)
    if values["token_ids"] is not None:
        rows = torch.tensor(values["token_ids"], dtype=torch.int64).reshape(-1, 1)
        ids.added = max(layer.tokens for layer in layers) - len(rows)
        ids.add(rows)
    recording = Recording(layers, dict(values["about"]), ids)
    what_ran(recording)  # fails where a report of it would
    return recording


def _as_layer(entry: dict, keep: int) -> WatchedLayer:
    layer = WatchedLayer(str(entry["name"]), entry["num_experts"], keep, tuple(map(str, entry["also"])))
    dtype = getattr(torch, entry["dtype"])
    experts, weights = torch.tensor(entry["experts"], dtype=torch.int64), torch.tensor(entry["weights"], dtype=dtype)
    load = torch.tensor(entry["load"], dtype=torch.int64)
    counts = {name: check_whole(name, int(entry[name]), 0) for name in COUNTS}
    kept = min(counts["tokens"], keep)
    if not kept:
        experts, weights = experts.reshape(0, 0), weights.reshape(0, 0)
    if (
        load.shape != (layer.num_experts,)
        or bool((load < 0).any())
        or experts.shape != weights.shape
        or experts.dim() != 2
    ):
        raise ValueError(f"{layer.name}: loads or rows have the wrong shape")
    if len(experts) != kept or bool(((experts < -1) | (experts >= layer.num_experts)).any()):
        raise ValueError(f"{layer.name}: {kept} kept tokens are wanted, with experts in -1..{layer.num_experts - 1}")
    layer.restore(load, experts, weights, **counts)
    return layer


def _write_parquet(recording: Recording, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    ids = recording.token_ids
    wide = any(layer.weights.dtype == torch.float64 for layer in recording.layers)
    columns = {name: [] for name in ("layer", "position", "token_id", "experts", "weights")}
    for number, layer in enumerate(recording.layers):
        kept = len(layer.experts)
        known = ids is not None and len(ids) == kept
        columns["layer"].append(pa.array([number] * kept, pa.int16()))
        columns["position"].append(pa.array(layer.positions[layer.kept - kept :].numpy(), pa.int64()))
        columns["token_id"].append(pa.array(ids.numpy() if known else [None] * kept, pa.int64()))
        columns["experts"].append(_lists(layer.experts.int(), pa.int32()))
        columns["weights"].append(_lists(layer.weights.double(), pa.float64() if wide else pa.float32()))
    heads = [head_of(layer) for layer in recording.layers]
    about = {"format": FORMAT, "about": recording.about, "keep": recording.ids_kept.size, "layers": heads}
    about["token_ids"] = ids is not None
    table = pa.table({name: pa.chunked_array(parts) for name, parts in columns.items()})
    table = table.replace_schema_metadata({"moe_lab.watch": json.dumps(about)})
    write_whole(path, lambda hidden: pyarrow.parquet.write_table(table, hidden))


def _lists(rows: Tensor, kind):
    """A column of lists, one a row."""
    import pyarrow as pa

    starts = torch.arange(len(rows) + 1).int() * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(starts.numpy()), pa.array(rows.reshape(-1).numpy()).cast(kind))


def _read_parquet(path: Path) -> dict:
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet

    check_file(path, most_bytes=None)
    try:
        table = pyarrow.parquet.read_table(path)
        values = json.loads((table.schema.metadata or {}).get(b"moe_lab.watch", b"{}"))
        for number, entry in enumerate(values.get("layers", [])):
            rows = table.filter(pyarrow.compute.equal(table["layer"], number))
            entry |= {name: rows[name].to_pylist() for name in ("experts", "weights")}
            if values["token_ids"] is True and len(rows):
                values["token_ids"] = rows["token_id"].to_pylist()
        values["token_ids"] = values.get("token_ids") or None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); was it cut off?") from error
    return values
