// Accountant: what a model stores, what a token uses of it, and what that costs in FLOPs and bytes.
// The first half is arithmetic without a page, the twin of accountant.py; a test compares the two.

const span = (first, last, step = 1) => times((last - first) / step + 1, (number) => first + number * step);
const powersOfTwo = (first, last) => times(last - first + 1, (number) => 2 ** (first + number));

export const SIZES = {
  num_layers: span(1, 128), d_model: span(256, 16384, 256), heads: powersOfTwo(0, 7), kv_heads: powersOfTwo(0, 7),
  d_expert: span(128, 16384, 128),
  num_experts: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512],
  top_k: span(1, 16), num_shared: span(0, 4),
  vocab_size: [8192, 16384, 32000, 50304, 65536, 102400, 129280, 151936, 201088, 262144],
};
// The sizes of Mixtral 8x7B.
export const START = {
  num_layers: 32, d_model: 4096, heads: 32, kv_heads: 8, d_expert: 14336, num_experts: 8, top_k: 2, num_shared: 0,
  vocab_size: 32000,
};
export const CONTEXTS = powersOfTwo(7, 20);
const CUSTOM = "custom";
const HEAD_DIM = 128;
const CONVENTIONS = ["both", "output", "none"];
const TRAINING_BYTES = { weights: 2, gradients: 2, "master weights": 4, "Adam moments": 8 };
// 32nds of a byte for each number, of the experts and of the rest: mxfp4 has 4 bits, and 8 for each block of 32.
const WIDTHS = {
  float32: [128, 128], bfloat16: [64, 64], float8_e4m3fn: [32, 32], int4: [16, 16], mxfp4: [17, 64],
};

// A plain decoder in the form in which Python sends the published models: rows of component, parameters, active ones by
// each convention, and FLOPs a token without the context; then an entry for each context. All below 2^53, so exact.
export function describe(state) {
  const { num_layers, d_model, heads, kv_heads, d_expert, num_experts, top_k, num_shared, vocab_size } = state;
  const attention = num_layers * 2 * d_model * (heads + kv_heads) * HEAD_DIM; // queries and output, keys and values
  const router = num_layers * d_model * num_experts;
  const expert = num_layers * 3 * d_model * d_expert; // gate, up and down
  const words = vocab_size * d_model;
  const norms = (2 * num_layers + 1) * d_model;
  const row = (name, params, active = params, flops = 2 * active) => [name, params, active, active, active, flops];
  return {
    slug: CUSTOM, name: "The custom model", num_experts, top_k, embeddings: "both", published: [null, null],
    rows: [
      ["embedding", words, words, 0, 0, 0], // a row is read, nothing multiplied
      row("attention", attention), row("router", router), row("experts", num_experts * expert, top_k * expert),
      ...(num_shared ? [row("shared_experts", num_shared * expert)] : []),
      row("norms", norms, norms, 0), ["output", words, words, words, 0, 2 * words],
    ],
    // a score and a sum with each key, 2 FLOPs a number; a key and a value to cache, 2 bytes a number
    context_flops: CONTEXTS.map((context) => num_layers * 4 * heads * HEAD_DIM * context),
    cache_bytes: CONTEXTS.map((context) => num_layers * 4 * kv_heads * HEAD_DIM * context),
  };
}

// The description of the model that is chosen.
export const modelOf = (state) => state.models.find(({ slug }) => slug === state.model) ?? describe(state);

// What the bars show, without parts that are 0: `tally` in accountant.py explains the names.
export function tally({ rows, embeddings, context_flops, cache_bytes }, settings) {
  const [at, training] = [CONTEXTS.indexOf(settings.context), settings.mode === "training"];
  const convention = settings.embeddings === "published" ? embeddings : settings.embeddings;
  const column = (number) => rows.map((row) => [row[0], row[number]]);
  const flops = [...column(5), ["context", context_flops[at]]].map(([part, one]) => [part, training ? 3 * one : one]);
  const params = sum(column(1).map(([, one]) => one));
  const experts = column(1).find(([part]) => part === "experts")?.[1] ?? 0;
  const [narrow, wide] = WIDTHS[settings.dtype];
  const expertBytes = Math.ceil((experts * narrow) / 32);
  const weights = Math.ceil((experts * narrow + (params - experts) * wide) / 32);
  const bars = {
    params: column(1), active: column(2 + CONVENTIONS.indexOf(convention)), flops,
    bytes: training ? Object.entries(TRAINING_BYTES).map(([part, each]) => [part, each * params])
      : [["experts", expertBytes], ["other weights", weights - expertBytes], ["cache", cache_bytes[at]]],
  };
  const kept = Object.entries(bars).map(([name, bar]) => [name, Object.fromEntries(bar.filter(([, one]) => one))]);
  const [total_params, active_params, flops_per_token, total_bytes] = kept.map(([, bar]) => sum(Object.values(bar)));
  return { ...Object.fromEntries(kept), total_params, active_params, flops_per_token, total_bytes };
}

// The custom model before a slider was moved, under the same settings.
export const tallyStart = (state) =>
  tally(describe(START), { ...state, embeddings: state.embeddings === "published" ? "both" : state.embeddings });

export function summarise(state, model = modelOf(state), found = tally(model, state)) {
  const { total_params: total, active_params: active, flops_per_token: flops } = found;
  const share = (part) => `${perCent(found.flops[part] ?? 0, flops)} %`;
  const [size, training] = [nameBytes(found.total_bytes), state.mode === "training"];
  return `${model.name} stores ${nameNumber(total)} parameters, and a token uses ${nameNumber(active)} ` +
    `(${perCent(active, total)} %): memory follows num_experts = ${model.num_experts}, ` +
    `FLOPs follow top_k = ${model.top_k}. At ${grouped(state.context)} tokens of context the router takes ` +
    `${share("router")} of the FLOPs, attention to the context ${share("context")}. ` +
    `${training ? `Training keeps ${size}, 16 bytes a parameter` : `Weights and cache take ${size}`}. ` +
    `${nameAgainst(state, model, found)}.`;
}

// How far off the published numbers, or how many times the sizes at the start.
function nameAgainst(state, { slug, published }, found) {
  if (slug === CUSTOM) {
    const start = tallyStart(state);
    const [total, active, flops] = ["total_params", "active_params", "flops_per_token"]
      .map((key) => timesOf(found[key], start[key]));
    return `Against the sizes of Mixtral 8x7B: ${total} times the parameters, ${active} times the active ones, ` +
      `${flops} times the FLOPs`;
  }
  const said = [[published[0], found.total_params, ""], [published[1], found.active_params, " active"]]
    .filter(([value]) => value !== null)
    .map(([value, ours, word]) => `${nameNumber(value, 3)}${word}, ${nameOff(ours, value)}`);
  return said.length ? `Published: ${said.join("; ")}` : "No sizes were published";
}

const nameOff = (ours, value) => `${perCent(Math.abs(ours - value), value)} % off`;

// number / unit in so many decimals, a half upwards, all but `least` without zeros at the end; exactly.
export function roundTo(number, unit, digits, least = 0) {
  const [big, step, power] = [BigInt(number), BigInt(unit), 10n ** BigInt(digits)];
  const scaled = (2n * big * power + step) / (2n * step);
  const decimals = digits ? String(scaled % power).padStart(digits, "0").replace(/0+$/, "").padEnd(least, "0") : "";
  return decimals ? `${scaled / power}.${decimals}` : String(scaled / power);
}

// Three digits and so many more, and the largest unit that is not above the number.
function nameIn(number, base, units, more = 0) {
  let power = 0;
  while (power + 1 < units.length && number >= base ** (power + 1)) power += 1;
  const unit = base ** power;
  const digits = power ? more + (number >= 100 * unit ? 0 : number >= 10 * unit ? 1 : 2) : 0;
  return `${roundTo(number, unit, digits)} ${units[power]}`.trimEnd();
}

export const nameNumber = (number, more) => nameIn(number, 1000, ["", "K", "M", "B", "T"], more);
export const nameBytes = (number) => nameIn(number, 1024, ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]);
const nameFlops = (number) => nameIn(number, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"]);
export function timesOf(number, other) {
  const said = roundTo(number, other, 2, 2);
  return said === "0.00" ? "under 0.01" : said;
}

// Per cent of the whole with two digits that count, a half upwards.
export function perCent(part, whole) {
  const said = roundTo(100n * BigInt(part), whole, 10 * part >= whole ? 0 : 100 * part >= whole ? 1 : 2);
  return part && said === "0" ? "under 0.01" : said;
}

// Where labels of these widths go, as near to their marks as they can without touching each other or the ends. Those
// that do not all fit lose their smallest; what is left out is null.
export function placeLabels(centres, widths, sizes, [left, right], gap = 6) {
  const kept = centres.map((_, number) => number);
  const needed = () => sum(kept.map((number) => widths[number] + gap)) - gap;
  while (kept.length && needed() > right - left) {
    kept.splice(kept.indexOf(kept.reduce((least, one) => (sizes[one] < sizes[least] ? one : least))), 1);
  }
  const places = centres.map(() => null);
  let low = left;
  for (const one of kept) {
    places[one] = Math.max(low, centres[one] - widths[one] / 2);
    low = places[one] + widths[one] + gap;
  }
  let high = right;
  for (const one of kept.reverse()) {
    places[one] = Math.min(places[one], high - widths[one]);
    high = places[one] - gap;
  }
  return places.map((place, one) => (place === null ? null : place + widths[one] / 2));
}

// The end of an axis that has room for the largest of these: a round number, so that small changes show in the bars.
export function roundEnd(values) {
  const largest = 1.02 * Math.max(...values);
  const unit = 10 ** Math.floor(Math.log10(largest));
  return [1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 10].map((step) => step * unit).find((end) => end >= largest);
}

function times(length, make) { return Array.from({ length }, (_, number) => make(number)); }
const sum = (values) => values.reduce((total, value) => total + value, 0);
const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const SETTINGS = { dtype: "bfloat16", context: 4096, embeddings: "published", mode: "inference" };
const STEPS = { ...SIZES, context: CONTEXTS }; // what a slider counts through
const TRAITS = ["models", "model", ...Object.keys(SIZES), ...Object.keys(SETTINGS), "refused"];

const DTYPES = {
  float32: "float32", bfloat16: "bfloat16", float8_e4m3fn: "float8", int4: "int4",
  mxfp4: "MXFP4 experts, rest bfloat16",
};
const COUNTED = {
  published: "as published, or both", both: "both count", output: "the output's counts", none: "neither counts",
};
const MODES = { inference: "Inference", training: "Training" };
const LABELS = {
  num_layers: "Layers", d_model: "d_model", heads: "Heads", kv_heads: "KV heads", d_expert: "d_expert",
  num_experts: "Experts", top_k: "Top-k", num_shared: "Shared experts", vocab_size: "Vocabulary",
};

// Colours of Okabe and Ito and a pattern each, so that no two parts in one bar look alike without colour.
const LOOKS = {
  embedding: ["#cc79a7", "M0 3 H6"], attention: ["#56b4e9", ""], recurrent: ["#999999", "M3 0 V6"],
  router: ["#d55e00", "M0 0 L6 6 M0 6 L6 0"], experts: ["#e69f00", "M0 6 L6 0"],
  shared_experts: ["#f0e442", "M0 0 L6 6"], dense_mlp: ["#009e73", "M0 3 H6 M3 0 V6"],
  norms: ["#999999", "M2 3 h2 M3 2 v2"], output: ["#cc79a7", "M3 0 V6"],
  vision: ["#009e73", "M2 3 h2 M3 2 v2"], context: ["#0072b2", "M0 3 H6"],
  "other weights": ["#999999", ""], cache: ["#0072b2", "M0 3 H6"],
  weights: ["#999999", ""], gradients: ["#f0e442", "M0 0 L6 6"], "master weights": ["#009e73", "M0 3 H6 M3 0 V6"],
  "Adam moments": ["#cc79a7", "M3 0 V6"],
};
const NAMES = { shared_experts: "shared experts", dense_mlp: "dense MLP", cache: "KV cache" };
const nameOf = (part) => NAMES[part] ?? part;
const explain = (part) => (part === "context" ? "attention to the context: scores and sums" : nameOf(part));

const options = (texts) => Object.entries(texts).map(([value, text]) => `<option value="${value}">${text}</option>`);
const slider = (name, label) => `<label>${label} <input name="${name}" type="range" min="0" max="${
  STEPS[name].length - 1}"><span aria-hidden="true"></span></label>`;
const PAGE = `
<div class="controls">
  <label>Model <select name="model"></select></label>
  <label>For <select name="mode">${options(MODES).join("")}</select></label>
  <label>Weights in <select name="dtype">${options(DTYPES).join("")}</select></label>
  ${slider("context", "Context")}
  <label>Embeddings <select name="embeddings">${options(COUNTED).join("")}</select></label>
  <button type="button">Reset</button>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<fieldset><legend>Sizes of the custom model</legend>
  ${Object.entries(LABELS).map(([name, label]) => slider(name, label)).join("")}
</fieldset>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<div class="picture">
  <div class="bars"></div>
  <div class="legend"></div>
  <p class="hint">Stored and used share one scale. Dashed, where it fits: num_experts whole models with one expert each,
    which would share neither attention nor embeddings. FLOPs: forward, for a token that attends to the whole context,
    2 for a multiply-add; training adds twice as much for the way back. Bytes for inference: the weights, and one
    sequence's cache in bfloat16. For training: weights and gradients in bfloat16 (2 + 2), master weights in float32 (4)
    and Adam's two moments (8), so 16 a parameter whatever dtype is chosen; activations come on top.</p>
</div>
<div class="tables" hidden></div>`;

const DRAWN = ["svg", "g", "path", "rect", "text", "tspan", "defs", "pattern"];

function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const makePatterns = (prefix) => make("svg", { class: "patterns", width: 0, height: 0, "aria-hidden": "true" },
  make("defs", {}, ...Object.values(LOOKS).map(([colour, lines], number) =>
    make("pattern", { id: `${prefix}-${number}`, width: 6, height: 6, patternUnits: "userSpaceOnUse" },
      make("rect", { width: 6, height: 6, fill: colour }), make("path", { class: "hatch", d: lines || "M0 0" })))));

const fillOf = (part, prefix) => `url(#${prefix}-${Object.keys(LOOKS).indexOf(part)})`;

const [TITLE_WIDTH, BAR_TOP, BAR_HEIGHT, LABEL_TOP, HEIGHT] = [112, 20, 24, 64, 82];
const LETTER = 6.4; // about as wide as a letter of a label is

// One bar: its parts from the left with a label each, marks for numbers to compare with if they lie on the axis, and
// what a dashed end stands for. `end` is the number at the right end of the axis.
function drawBar({ title, note, parts, name, end, nameEnd, marks, ghost }, width, prefix) {
  const [left, right, low] = [TITLE_WIDTH, width - 8, BAR_TOP + BAR_HEIGHT];
  const x = (value) => left + (value / end) * (right - left);
  let total = 0;
  const cuts = Object.entries(parts).map(([part, number]) =>
    ({ part, from: x(total), to: x((total += number)), lines: [nameOf(part), name(number)], number }));
  const dashed = ({ name: whose, number }) =>
    ({ from: x(total), to: x(number), lines: [whose, name(number)], number: total });
  const ends = ghost ? [dashed(ghost)] : [];
  const labelled = [...cuts, ...ends];
  const centres = labelled.map(({ from, to }) => (from + to) / 2);
  const widths = labelled.map(({ lines }) => LETTER * Math.max(...lines.map((line) => line.length)));
  const places = placeLabels(centres, widths, labelled.map(({ number }) => number), [left - 4, width]);
  const spoken = [...labelled.map(({ lines }) => lines.join(" ")), ...marks.map(({ text }) => text)].join(", ");
  const box = (from, to) => `M${from.toFixed(2)} ${BAR_TOP}H${to.toFixed(2)}V${low}H${from.toFixed(2)}Z`;
  return make("svg", { role: "img", "aria-label": `${title}, ${note}, ${spoken}`, width, height: HEIGHT },
    make("text", { class: "title", x: 0, y: BAR_TOP + 10 }, title),
    make("text", { x: 0, y: BAR_TOP + 25 }, note),
    make("path", { class: "track", d: `M${left} ${low + 0.5}H${right}V${low - 8}` }),
    make("text", { class: "end", x: right, y: 11 }, nameEnd(end)),
    ...ends.map(({ from, to }) => make("path", { class: "ghost", d: box(from, to) })),
    ...cuts.map(({ part, from, to }) =>
      make("path", { class: "part", "data-part": part, fill: fillOf(part, prefix), d: box(from, to) })),
    ...labelled.flatMap(({ lines }, number) => drawLabel(lines, centres[number], places[number], low)),
    ...marks.filter(({ number }) => number <= end).map(({ number, text }) =>
      drawMark(x(number), text, low, [left, right - 18 - LETTER * nameEnd(end).length])));
}

function drawLabel(lines, centre, place, low) {
  if (place === null) return [];
  const bend = `M${centre.toFixed(1)} ${low + 1}v2L${place.toFixed(1)} ${LABEL_TOP - 10}`;
  return [make("path", { class: "leader", d: bend }),
    ...lines.map((line, number) => make("text", { class: "label", x: place, y: LABEL_TOP + 13 * number }, line))];
}

// A line across the bar, with its words above it, moved aside where the ends are near.
function drawMark(at, text, low, [left, right]) {
  const half = (LETTER * text.length) / 2;
  return make("g", { class: "mark" },
    make("path", { d: `M${at} ${BAR_TOP - 3}V${low + 3}M${at - 4} ${BAR_TOP - 3}h8` }),
    make("text", { x: Math.max(left + half, Math.min(right - half, at)), y: 11 }, text));
}

function drawLegend(found, prefix) {
  const parts = new Set(["params", "flops", "bytes"].flatMap((bar) => Object.keys(found[bar])));
  return [...parts].map((part) => make("span", {},
    make("svg", { "aria-hidden": "true", width: 20, height: 12 },
      make("path", { class: "part", d: "M0.5 0.5h19v11h-19z", fill: fillOf(part, prefix) })), explain(part)));
}

// The end of an axis of bytes: round in the unit in which it is named.
function roundBytes(values) {
  let unit = 1;
  while (1.02 * Math.max(...values) > 1000 * unit) unit *= 1024;
  return Math.round(unit * roundEnd(values.map((value) => value / unit)));
}

// What num_experts whole models with one expert each would store, if that is more but not far more than the model.
export function wholeModels({ num_experts }, { params, total_params }) {
  const experts = params.experts ?? 0;
  const number = num_experts * (total_params - experts) + experts;
  return number > total_params && number < 1.5 * total_params ? { name: `${num_experts} whole models`, number } : null;
}

// The four bars of a state; the first two share an axis.
function barsOf(state, model, found) {
  const start = model.slug === CUSTOM ? tallyStart(state) : null;
  const mark = (key, name, published = null) => {
    if (start) return [{ number: start[key], text: `Mixtral 8x7B ${name(start[key])}` }];
    if (published === null) return [];
    return [{ number: published, text: `published ${nameNumber(published, 3)}, ${nameOff(found[key], published)}` }];
  };
  // a mark far to the right of all parts would leave them no room: it is left out instead
  const endOf = (key, marks, round = roundEnd) =>
    round([found[key], ...marks.map(({ number }) => number).filter((number) => number < 20 * found[key])]);
  const { total_params: total, active_params: active, flops_per_token: flops, total_bytes } = found;
  const stored = mark("total_params", nameNumber, model.published[0]);
  const ghost = wholeModels(model, found);
  const [counted, kept] = [mark("flops_per_token", nameFlops), mark("total_bytes", nameBytes)];
  const end = endOf("total_params", ghost ? [...stored, ghost] : stored);
  const params = { name: nameNumber, nameEnd: nameNumber, end };
  return [
    { ...params, title: "Stored", note: nameNumber(total), parts: found.params, marks: stored, ghost },
    { ...params, title: "A token uses", note: `${nameNumber(active)}, ${perCent(active, total)} %`, parts: found.active,
      marks: mark("active_params", nameNumber, model.published[1]) },
    { title: "FLOPs a token", note: nameFlops(flops), parts: found.flops, marks: counted,
      name: (number) => `${perCent(number, flops)} %`, nameEnd: nameFlops, end: endOf("flops_per_token", counted) },
    { title: "Bytes", note: nameBytes(total_bytes), parts: found.bytes, marks: kept,
      name: nameBytes, nameEnd: nameBytes, end: endOf("total_bytes", kept, roundBytes) },
  ];
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function makeTables({ published }, found) {
  const bars = [found.params, found.active, found.flops];
  const parts = Object.keys(LOOKS).filter((part) => bars.some((bar) => part in bar));
  const [total, active] = published;
  const off = [["Parameters", total, found.total_params], ["Active parameters", active, found.active_params]]
    .filter(([, value]) => value !== null)
    .map(([name, value, ours]) => [name, grouped(value), grouped(ours), nameOff(ours, value)]);
  return [
    makeTable("Parts", ["Part", "Parameters", "A token uses", "FLOPs a token"], [
      ...parts.map((part) => [nameOf(part), ...bars.map((bar) => grouped(bar[part] ?? 0))]),
      ["together", ...[found.total_params, found.active_params, found.flops_per_token].map(grouped)],
    ]),
    makeTable("Bytes", ["What", "Bytes", ""], [...Object.entries(found.bytes), ["together", found.total_bytes]]
      .map(([part, number]) => [nameOf(part), grouped(number), nameBytes(number)])),
    ...(off.length ? [makeTable("Published", ["What", "Published", "Counted", "Difference"], off)] : []),
  ];
}

function render({ model, el }) {
  const root = make("div", { class: "accountant" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const fields = [...root.querySelectorAll("[name]")];
  const asTable = find(".as-table");
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  const prefix = `part-${Math.random().toString(36).slice(2)}`; // ids belong to the page, which may hold two of us
  let [frame, listed, width] = [0, null, 0];

  // The state under the traits' names, made to fit where only one of two traits has arrived.
  function readState() {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const [top_k, kv_heads] = [Math.min(state.top_k, state.num_experts), Math.min(state.kv_heads, state.heads)];
    return { ...state, top_k, kv_heads };
  }

  const widthNow = () => Math.max(440, Math.min(900, root.clientWidth - 16));

  function drawFields(state) {
    if (listed !== state.models) {
      const names = state.models.map(({ slug, name }) => make("option", { value: slug }, name));
      find("[name=model]").replaceChildren(...names, make("option", { value: CUSTOM }, "custom"));
      listed = state.models;
    }
    for (const field of fields) {
      const [value, steps] = [state[field.name], STEPS[field.name]];
      if (steps) {
        field.value = steps.indexOf(value);
        field.setAttribute("aria-valuetext", grouped(value));
        field.nextElementSibling.textContent = grouped(value);
      } else field.value = value;
    }
    find("[name=top_k]").max = SIZES.top_k.indexOf(Math.min(state.num_experts, SIZES.top_k.at(-1)));
    find("[name=kv_heads]").max = SIZES.kv_heads.indexOf(state.heads);
    find("[name=dtype]").disabled = state.mode === "training";
    find("fieldset").hidden = state.model !== CUSTOM;
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const chosen = modelOf(state);
    const found = tally(chosen, state);
    const sentence = summarise(state, chosen, found);
    drawFields(state);
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    find(".picture").hidden = asTable.checked;
    find(".tables").hidden = !asTable.checked;
    width = widthNow();
    if (asTable.checked) find(".tables").replaceChildren(...makeTables(chosen, found));
    else {
      find(".bars").replaceChildren(makePatterns(prefix),
        ...barsOf(state, chosen, found).map((bar) => drawBar(bar, width, prefix)));
      find(".legend").replaceChildren(...drawLegend(found, prefix));
    }
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };
  const watcher = new ResizeObserver(() => { if (widthNow() !== width) schedule(); });

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  function setField({ name, value }) {
    const state = readState();
    const number = STEPS[name]?.[Number(value)];
    if (name === "num_experts") update({ num_experts: number, top_k: Math.min(state.top_k, number) });
    else if (name === "heads") update({ heads: number, kv_heads: Math.min(state.kv_heads, number) });
    else update({ [name]: number ?? value });
  }

  for (const field of fields) field.addEventListener("input", () => setField(field));
  asTable.addEventListener("change", schedule);
  find("button").addEventListener("click", () => update({ ...START, ...SETTINGS })); // the model stays
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  draw();
  watcher.observe(root);
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    watcher.disconnect();
    cancelAnimationFrame(frame);
    el.replaceChildren();
  };
}

export default { render };
