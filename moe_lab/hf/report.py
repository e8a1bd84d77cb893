"""The report of a watch: one HTML page that can be mailed, with everything in it and nothing asked from outside."""

import html

from matplotlib.figure import Figure

from moe_lab.figures import mime_bundle
from moe_lab.hf.recording import Recording, html_table
from moe_lab.plots.watching import draw_unevenness, say_unevenness

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --quiet: #555; --line: #ccc; --band: #f4f4f4 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e8e8e8; --quiet: #b0b0b0; --line: #444; --band: #202327 }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem }
h1, h2 { line-height: 1.2 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem }
dt { color: var(--quiet) }
dd { margin: 0; overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--quiet); padding-bottom: .5rem }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--line) }
th[scope=row], thead th:first-child { text-align: left; font-weight: normal; font-family: monospace }
thead th { border-bottom: 2px solid var(--line) }
tbody tr:nth-child(even) { background: var(--band) }
figure { margin: 1rem 0 }
figure img { max-width: 100%; background: #fff; border-radius: 4px }
figcaption { color: var(--quiet) }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Whatever stood in the page, the browser would fetch and run nothing."""

BEGINS = (
    f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Routing of '
)
"""How such a page begins, and so what a new one may replace."""

MEANING = {
    "max/mean": "load of the busiest expert over the mean load; 1 is even",
    "variance": "mean of (load - mean)²; it grows with the number of tokens, so compare cv",
    "cv": "standard deviation of the loads over their mean; 0 is even",
    "chance": "the cv that would still be left if every token drew its experts by fair lots",
    "entropy": "of the shares of the load, over its largest value; 1 is even",
    "gini": "inequality of the loads; 0 is even",
    "dead": "experts without any token",
    "dropped": "share of the slots that no expert took: dropped tokens, or experts on another rank",
}


def make_page(recording: Recording) -> str:
    """The whole page, as text.

    Rule: everything that comes from the model or the machine is escaped; figures are inside; the page says by its
    content security policy that nothing may be loaded.
    """
    about = recording.about
    model = html.escape(str(about["model"]))
    names = [layer.name for layer in recording.layers]
    balances = [layer.balance for layer in recording.layers]
    spread = (names, [balance.cv for balance in balances], [balance.noise_floor_cv for balance in balances])
    sections = [
        f"<h1>Routing of {model}</h1>",
        f"<p>{html.escape(recording.say_kept())}</p>",
        "<h2>What ran</h2>",
        _list(what_ran(recording)),
        "<h2>Load of every layer</h2>",
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of loads">'
        f"{html_table(recording, 'A row a layer; what the columns mean stands below.')}</div>",
        _list(MEANING),
        "<h2>Load of every expert</h2>",
        _figure(recording.plot(), recording.say(), "A cross: no token. A ring: the busiest expert of its layer."),
        "<h2>Unevenness by layer</h2>",
        _figure(draw_unevenness(*spread), say_unevenness(*spread), "Below the dashed line, more even than lots."),
        "<h2>What is not known</h2>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in what_is_not_known(recording)) + "</ul>",
    ]
    body = "\n".join(sections)
    return f"{BEGINS}{model}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body>\n</html>\n"


def what_ran(recording: Recording) -> dict[str, str]:
    """Names and values of what a reader needs to judge the numbers."""
    about, machine = recording.about, recording.about.get("machine", {})
    versions = {**about.get("versions", {}), **machine.get("versions", {})}
    changed = " with changes" if machine.get("dirty") else ""
    found = {
        "model": about["model"],
        "model type": about["model_type"],
        "loaded from": about["loaded_from"],
        "parameters": f"{about['parameters']:,}",
        "experts ran on": about["experts_implementation"],
        "precision": about["dtypes"],
        "mode": "training" if about["training"] else "evaluation",
        "device": f"{about['devices']}: {machine['device']}" if machine else about["devices"],
        "calls": f"{max(layer.calls for layer in recording.layers):,}",
        "from": about.get("started"),
        "to": about.get("ended"),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "this library": f"commit {machine['commit'][:9]}{changed}" if machine else None,
    }
    return {name: value or "not known" for name, value in found.items()}


def what_is_not_known(recording: Recording) -> list[str]:
    """What a reader might look for in vain, and why it is not there."""
    layers, lines = recording.layers, []
    most = max(layers, key=lambda layer: layer.left_out)
    if most.left_out:
        lines.append(f"Which experts the first {most.left_out:,} tokens went to: only their loads were kept.")
    if recording.token_ids is None:
        lines.append("Which token ids the kept rows belong to.")
    if silent := [layer.name for layer in layers if not layer.calls]:
        lines.append(f"The routing of {len(silent)} layers that no token reached: {', '.join(silent[:8])}.")
    if not recording.about.get("loaded_from"):
        lines.append("Where the weights came from.")
    if not recording.about.get("machine"):
        lines.append("The machine: the watch was still open.")
    lines.append("The time that the run took, and its loss: a watch measures neither.")
    return lines


def _list(pairs: dict[str, str]) -> str:
    rows = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in pairs.items())
    return f"<dl>{''.join(rows)}</dl>"


def _figure(fig: Figure, alt: str, caption: str) -> str:
    return mime_bundle(fig, alt, caption, alt)["text/html"]
