// Expert roofline: how many rows an expert sees, and what a device then allows it at best.
// The first half is arithmetic without a page, the twin of expert_roofline.py and roofline.py; a test compares them.

const BYTES = { bfloat16: 2, float16: 2, float32: 4 };
const SIZES = ["d_model", "d_expert", "num_experts", "top_k"];
const TRAITS = ["devices", "models", "device", "model", ...SIZES, "tokens", "dtype", "direction", "skew", "refused"];
const CUSTOM = "custom";
const [MOST_TOKENS_LOG, MOST_EXPERTS_LOG, MOST_TOP_K] = [20, 9, 16];

// The chance of each expert to be among a token's top_k: equal, or by Zipf's law with the given max over mean.
export function popularity(numExperts, topK, maxOverMean) {
  if (maxOverMean === 1) return times(numExperts, () => topK / numExperts);
  const weightsFor = (exponent) => times(numExperts, (expert) => (expert + 1) ** -exponent);
  let [low, high] = [0, 64];
  for (let round = 0; round < 60; round++) {
    const exponent = (low + high) / 2;
    if (numExperts / sum(weightsFor(exponent)) < maxOverMean) low = exponent;
    else high = exponent;
  }
  const weights = weightsFor(high);
  const total = sum(weights);
  return weights.map((weight) => Math.min(1, (topK * weight) / total));
}

// 1 - (1 - chance)^tokens, exact for the smallest chances too.
const woken = (chance, tokens) => -Math.expm1(tokens * Math.log1p(-chance));
export const expertsHit = (chances, tokens) => sum(chances.map((chance) => woken(chance, tokens)));

// FLOPs and compulsory bytes of one pass; roofline.expert_cost says which.
export function costOf({ d_model, d_expert, num_experts }, tokens, rows, hit, direction, dtype) {
  const [size, weights, training] = [BYTES[dtype], 3 * d_model * d_expert, direction === "training"];
  const flops = (training ? 3 : 1) * 2 * weights * rows;
  const bytes = (training ? 2 : 1) * size * weights * hit + (training ? size * weights * num_experts : 0) +
    (training ? 5 : 2) * size * d_model * tokens + (training ? 4 * size * d_expert * rows : 0);
  return { flops, bytes, intensity: flops / bytes };
}

export const ridgeOf = ({ flops_per_s, bytes_per_s }, dtype) => flops_per_s[dtype] / bytes_per_s;

export function attainable({ flops, bytes, intensity }, device, dtype) {
  const peak = device.flops_per_s[dtype];
  return {
    flops_per_s: Math.min(peak, intensity * device.bytes_per_s),
    time_ms: 1e3 * Math.max(flops / peak, bytes / device.bytes_per_s),
    limit: intensity >= ridgeOf(device, dtype) ? "compute" : "memory",
  };
}

// The smallest batch whose intensity reaches the ridge, or null: intensity only rises with tokens.
export function computeBoundFrom(shape, device, { direction, dtype }, chances) {
  const ridge = ridgeOf(device, dtype);
  const cost = (tokens, hit) => costOf(shape, tokens, tokens * shape.top_k, hit, direction, dtype);
  const token = costOf({ ...shape, num_experts: 0 }, 1, shape.top_k, 0, direction, dtype);
  const paid = token.flops / ridge - token.bytes; // bytes that one more token's FLOPs pay for
  if (paid <= 0) return null;
  let [low, high] = [1, Math.ceil(cost(0, shape.num_experts).bytes / paid)];
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (cost(middle, expertsHit(chances, middle)).intensity >= ridge) high = middle;
    else low = middle + 1;
  }
  return low;
}

export const denseOf = ({ d_model, d_expert, top_k }) =>
  ({ d_model, d_expert: top_k * d_expert, num_experts: 1, top_k: 1 });

// Everything that the picture shows: the layer's experts, the dense layer of equal FLOPs, and every expert alone.
export function examine(state) {
  const { tokens, num_experts, top_k, direction, dtype } = state;
  const device = state.devices.find(({ name }) => name === state.device);
  const often = Math.min(state.skew, num_experts / top_k);
  const chances = popularity(num_experts, top_k, often);
  const look = (shape, its) => {
    const cost = costOf(shape, tokens, tokens * shape.top_k, expertsHit(its, tokens), direction, dtype);
    return { ...cost, ...attainable(cost, device, dtype), from: computeBoundFrom(shape, device, state, its) };
  };
  const alone = { ...state, num_experts: 1, top_k: 1 };
  const each = chances.map((chance) => {
    const rows = (tokens * chance) / woken(chance, tokens);
    const cost = costOf(alone, rows, rows, 1, direction, dtype);
    return { rows, ...cost, ...attainable(cost, device, dtype) };
  });
  return {
    device, often, ridge: ridgeOf(device, dtype), rows: (tokens * top_k) / num_experts,
    experts: look(state, chances), dense: look(denseOf(state), [1]), each,
    byMemory: each.filter(({ limit }) => limit === "memory").length,
  };
}

export function summarise(state, found = examine(state)) {
  const { device, rows, often } = found;
  const { num_experts, top_k, tokens } = state;
  const experts = num_experts === 1 ? "1 expert" : `${num_experts} experts`;
  const name = state.model === CUSTOM ? `Top-${top_k} of ${experts}` : state.model;
  const every = often === num_experts / top_k ? " (every token)" : "";
  const busiest = often > 1 ? `, the busiest ${threeDigits(rows * often)}${every}; ` +
    `${found.byMemory} of ${num_experts} experts alone are limited by memory` : "";
  const say = ({ intensity, limit, flops_per_s, time_ms }) => `${threeDigits(intensity)} FLOP/byte, ` +
    `limited by ${limit}, at most ${sayRate(flops_per_s)}, at least ${sayTime(time_ms)}`;
  return `${name} on ${device.name} (${device.kind}), ${state.dtype}, ${state.direction}: at ${nameTokens(tokens)} ` +
    `an expert sees ${threeDigits(rows)} ${rows === 1 ? "row" : "rows"} on average${busiest}. ` +
    `Experts: ${say(found.experts)}. Dense layer of equal FLOPs: ${say(found.dense)}. ` +
    `Compute limits the experts ${sayFrom(found.experts)}, the dense layer ${sayFrom(found.dense)}.`;
}

// A number by its first three digits, a half upwards.
export const threeDigits = (value) => withCommas(Number(value.toPrecision(3)));

export function sayRate(flopsPerSecond) {
  const [unit, size] = flopsPerSecond >= 1e12 ? ["T", 1e12] : ["G", 1e9];
  return `${threeDigits(flopsPerSecond / size)} ${unit}FLOP/s`;
}

export function sayTime(milliseconds) {
  if (milliseconds >= 1e3) return `${threeDigits(milliseconds / 1e3)} s`;
  return milliseconds >= 0.1 ? `${threeDigits(milliseconds)} ms` : `${threeDigits(milliseconds * 1e3)} µs`;
}

const withCommas = (number) => {
  const [whole, rest] = String(number).split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest ? `.${rest}` : "");
};
const nameTokens = (tokens) => (tokens === 1 ? "1 token" : `${withCommas(tokens)} tokens`);
const sayFrom = ({ from }) => (from === null ? "at no number of tokens" : `from ${nameTokens(from)} on`);
const times = (length, make) => Array.from({ length }, (_, number) => make(number));
const sum = (values) => values.reduce((total, value) => total + value, 0);

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [700, 400, 62, 690, 14, 350];
const HIGHEST_INTENSITY = 1e5;

const VALUE = '<span aria-hidden="true"></span>'; // the number beside a slider, which says its own aloud
const PAGE = `
<div class="controls">
  <label>Device <select name="device"></select></label>
  <label>Model <select name="model"></select></label>
  <label>Pass <select name="direction"><option>forward</option><option>training</option></select></label>
  <label>Dtype <select name="dtype"></select></label>
  <label>Skew <select name="skew"><option value="1">even</option><option value="2.5">2.5 x the mean</option>
    <option value="7">7 x the mean</option></select></label>
  <label>Tokens <input name="tokens" class="log wide" type="range" min="0" max="${MOST_TOKENS_LOG}">${VALUE}</label>
  <label>Experts <input name="num_experts" class="log" type="range" min="0" max="${MOST_EXPERTS_LOG}">${VALUE}</label>
  <label>Top-k <input name="top_k" type="range" min="1" max="${MOST_TOP_K}">${VALUE}</label>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<div class="picture">
  <div class="roof"></div>
  <div class="legend"></div>
  <p class="hint">FLOP/byte counts the bytes that must move whatever the kernel does: the weights of every expert that a
    token wakes, and the tokens in and out. A mark on the roof is the best that the device allows, not what a kernel
    reaches.</p>
</div>
<div class="tables" hidden></div>
<p class="source"></p>`;

const DRAWN = ["svg", "g", "path", "rect", "text", "circle"];

function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const logScale = ([low, high], [from, to]) => (value) =>
  from + (Math.log(value / low) / Math.log(high / low)) * (to - from);
const decade = (value, round) => 10 ** round(Math.log10(value));
const decades = ([low, high]) => times(Math.round(Math.log10(high / low)) + 1, (power) => low * 10 ** power);
const at = (...numbers) => numbers.map((number) => number.toFixed(1)).join(" ");

// FLOP/byte and FLOP/s that have room for every mark and every ceiling, in whole decades.
function rangesOf({ device, ridge, experts, dense, each }) {
  const least = Math.min(0.8, ridge, experts.intensity, dense.intensity, ...each.map(({ intensity }) => intensity));
  const low = decade(least / 8, Math.floor); // room for a name on the left of a mark
  const peaks = Object.values(device.flops_per_s);
  return [[low, HIGHEST_INTENSITY],
    [decade(low * device.bytes_per_s, Math.floor), decade(Math.max(...peaks) * 5, Math.ceil)]];
}

function nameTick(value) {
  const [unit, size] = [["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6]].find(([, one]) => value >= 0.99 * one);
  return `${Math.round(value / size)} ${unit}`;
}

function drawAxes(ranges, x, y) {
  const grid = [...decades(ranges[0]).map((tick) => `M${at(x(tick), TOP)}V${BOTTOM}`),
    ...decades(ranges[1]).map((tick) => `M${at(LEFT, y(tick))}H${RIGHT}`)];
  return [make("path", { class: "grid", d: grid.join("") }),
    make("path", { class: "axis", d: `M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}` }),
    ...decades(ranges[0]).map((tick) => make("text", { class: "middle", x: Math.min(x(tick), RIGHT - 18).toFixed(1),
      y: BOTTOM + 15 }, withCommas(Number(tick.toPrecision(3))))),
    ...decades(ranges[1]).map((tick) => make("text", { class: "end", x: LEFT - 5, y: (y(tick) + 4).toFixed(1) },
      nameTick(tick))),
    make("text", { class: "middle", x: (LEFT + RIGHT) / 2, y: BOTTOM + 36 },
      "intensity, FLOP per byte moved (log scale)"),
    make("text", { class: "middle", transform: `translate(11 ${(TOP + BOTTOM) / 2}) rotate(-90)` },
      "FLOP/s at most (log scale)")];
}

// One roof for each rate, since dtypes may share one: the chosen dtype's whole, the others' dashed from the slope on.
function roofsOf({ flops_per_s }, dtype) {
  const rates = [...new Set(Object.values(flops_per_s))];
  return rates.map((rate) => {
    const names = Object.keys(flops_per_s).filter((name) => flops_per_s[name] === rate);
    return { rate, names, chosen: names.includes(dtype) };
  });
}

function drawRoofs(found, { dtype }, ranges, x, y) {
  const { device, ridge } = found;
  const [low] = ranges[0];
  const marks = [found.experts, found.dense];
  const lines = roofsOf(device, dtype).flatMap(({ rate, names, chosen }) => {
    const corner = Math.max(low, rate / device.bytes_per_s);
    const label = `${names.join(", ")}: ${sayRate(rate)}`;
    const start = chosen ? low : ridge; // of the slope; a lower roof needs none
    const slope = corner < start ? "M" : `M${at(x(start), y(start * device.bytes_per_s))}L`;
    const line = `${slope}${at(x(corner), y(rate))}H${RIGHT}`;
    // where marks have their own names at the right end: above those, or for a roof closely below at its left end
    const busy = marks.some((mark) => x(mark.intensity) > RIGHT - 240);
    const close = corner < ridge && y(rate) - y(device.flops_per_s[dtype]) < 45;
    const place = busy && close ? { class: "", x: (x(corner) + 28).toFixed(1) } : { class: "end", x: RIGHT };
    return [make("path", { class: chosen ? "roof-line" : "other-roof", d: line }),
      make("text", { ...place, y: (y(rate) - (busy && chosen ? 26 : 6)).toFixed(1) }, label)];
  });
  // along the slope, as far from the marks as possible
  const span = Math.log(ridge / low);
  const distance = (share) => Math.min(...marks.map((mark) => Math.abs(Math.log(mark.intensity / low) / span - share)));
  const share = [0.7, 0.55, 0.4, 0.25].reduce((best, one) => (distance(one) > distance(best) + 0.05 ? one : best));
  const middle = low * Math.exp(share * span);
  const rise = y(low * device.bytes_per_s) - y(ridge * device.bytes_per_s);
  const angle = (-Math.atan2(rise, x(ridge) - x(low)) * 180) / Math.PI;
  return [make("path", { class: "ridge", d: `M${at(x(ridge), y(ridge * device.bytes_per_s))}V${BOTTOM}` }),
    make("text", { x: (x(ridge) + 5).toFixed(1), y: BOTTOM - 7 }, `ridge: ${threeDigits(ridge)} FLOP/byte`),
    ...(x(ridge) > LEFT + 110 ? [make("text", { class: "end side", x: (x(ridge) - 9).toFixed(1), y: TOP + 12 },
      "← memory limits")] : []),
    make("text", { class: "side", x: (x(ridge) + 9).toFixed(1), y: TOP + 12 }, "compute limits →"),
    ...lines,
    make("text", { class: "middle", transform:
      `translate(${at(x(middle), y(middle * device.bytes_per_s))}) rotate(${angle.toFixed(1)}) translate(0 -7)` },
    `memory: ${sayBandwidth(device.bytes_per_s)}`)];
}

const sayBandwidth = (rate) => (rate >= 1e12 ? `${threeDigits(rate / 1e12)} TB/s` : `${threeDigits(rate / 1e9)} GB/s`);

// They differ without colour: a disc for the layer's experts, a barred square for the dense layer, rings for one.
const SYMBOLS = {
  experts: () => [make("circle", { r: 6.5 })],
  dense: () => [make("rect", { x: -9, y: -9, width: 18, height: 18 }),
    make("path", { d: "M-9 9L9 -9M-9 0L0 -9M0 9L9 0" })],
  one: (radius = 5) => [make("circle", { r: radius.toFixed(1) })],
};

// The experts' name stands above the slope and the dense layer's below it, so that the two never meet.
function drawMark(kind, mark, x, y, text) {
  const [left, top] = [x(mark.intensity), y(mark.flops_per_s)];
  const label = kind === "experts" ? { class: "end name", x: -12, y: -9 }
    : left > RIGHT - 60 ? { class: "end name", x: -12, y: 22 } : { class: "name", x: 13, y: 22 };
  return make("g", { class: `mark ${kind}`, transform: `translate(${at(left, top)})` },
    make("path", { class: "drop", d: `M0 0V${(BOTTOM - top).toFixed(1)}` }), ...SYMBOLS[kind](),
    make("text", label, text));
}

function drawRoofline(state, found) {
  const ranges = rangesOf(found);
  const [x, y] = [logScale(ranges[0], [LEFT, RIGHT]), logScale(ranges[1], [BOTTOM, TOP])];
  const most = Math.max(...found.each.map(({ rows }) => rows));
  const rings = found.often > 1 ? found.each.map((one) => make("g",
    { class: "mark one", transform: `translate(${at(x(one.intensity), y(one.flops_per_s))})` },
    ...SYMBOLS.one(2 + 9 * Math.sqrt(one.rows / most)))) : [];
  const say = (name, { intensity, flops_per_s, limit }) =>
    `${name} at ${threeDigits(intensity)} FLOP/byte, at most ${sayRate(flops_per_s)}, limited by ${limit}`;
  const alone = rings.length ? `; each expert alone, ${found.byMemory} of ${rings.length} limited by memory` : "";
  const name = `Roofline of ${state.device}, ${state.dtype}, ridge at ${threeDigits(found.ridge)} FLOP/byte; ` +
    `${say("experts", found.experts)}; ${say("dense layer", found.dense)}${alone}`;
  return make("svg", { role: "img", "aria-label": name, viewBox: `0 0 ${WIDTH} ${HEIGHT}` },
    ...drawAxes(ranges, x, y), ...drawRoofs(found, state, ranges, x, y), ...rings,
    drawMark("dense", found.dense, x, y, "dense"),
    drawMark("experts", found.experts, x, y, "experts"));
}

function drawLegend({ often }) {
  const items = [["experts", "all experts of the layer"], ["dense", "dense layer of equal FLOPs"]];
  if (often > 1) items.push(["one", "one expert alone, larger with more rows"]);
  return items.map(([kind, text]) => make("span", {},
    make("svg", { "aria-hidden": "true", viewBox: "-10 -10 20 20", width: 20, height: 20 },
      make("g", { class: `mark ${kind}` }, ...SYMBOLS[kind]())), text));
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function makeTables(state, { device, often, experts, dense, each, ridge }) {
  const cells = ({ intensity, limit, flops_per_s, time_ms }) =>
    [`${threeDigits(intensity)} FLOP/byte`, limit, sayRate(flops_per_s), sayTime(time_ms)];
  const layer = (name, one) => [name, `${threeDigits(one.flops / 1e9)} G`, `${threeDigits(one.bytes / 1e6)} MB`,
    ...cells(one), one.from === null ? "never" : `${nameTokens(one.from)}`];
  const tables = [
    makeTable("Layers", ["What", "FLOPs", "Bytes", "Intensity", "Limit", "At most", "At least", "Compute limits from"],
      [layer("Experts", experts), layer("Dense layer", dense)]),
    makeTable("Ceilings", ["What", "Rate", "Ridge"], [["Memory", sayBandwidth(device.bytes_per_s), ""],
      ...Object.entries(device.flops_per_s).map(([dtype, rate]) =>
        [dtype, sayRate(rate), `${threeDigits(ridgeOf(device, dtype))} FLOP/byte`])]),
  ];
  const header = ["Expert", "Rows if woken", "Intensity", "Limit", "At most", "At least"];
  const rows = each.map((one, expert) => [expert, threeDigits(one.rows), ...cells(one)]);
  return often > 1 ? [...tables, makeTable("Each expert alone", header, rows)] : tables;
}

function render({ model, el }) {
  const root = make("div", { class: "expert-roofline" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const fields = [...root.querySelectorAll("[name]")];
  const asTable = find(".as-table");
  for (const control of root.querySelectorAll("input, select")) control.setAttribute(QUIET, "");
  let frame = 0;

  // The state under the traits' names, made to fit where only one of two traits has arrived.
  function readState() {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const device = state.devices.find(({ name }) => name === state.device) ?? state.devices[0];
    const dtype = state.dtype in device.flops_per_s ? state.dtype : Object.keys(device.flops_per_s)[0];
    return { ...state, device: device.name, dtype, top_k: Math.min(state.top_k, state.num_experts) };
  }

  function fillSelects({ devices, models, device }) {
    const option = (value, text = value) => make("option", { value }, text);
    const kinds = [...new Set(devices.map(({ kind }) => kind))];
    find("[name=device]").replaceChildren(...kinds.map((kind) => make("optgroup", { label: kind },
      ...devices.filter((one) => one.kind === kind).map(({ name }) => option(name, `${name} (${kind})`)))));
    find("[name=model]").replaceChildren(...[...Object.keys(models), CUSTOM].map((name) => option(name)));
    const known = Object.keys(devices.find(({ name }) => name === device).flops_per_s);
    find("[name=dtype]").replaceChildren(...known.map((name) => option(name)));
  }

  function setFields(state) {
    fillSelects(state);
    find("[name=top_k]").max = Math.min(MOST_TOP_K, state.num_experts);
    for (const field of fields) {
      const value = field.matches(".log") ? Math.round(Math.log2(state[field.name])) : state[field.name];
      if (field.value !== String(value)) field.value = value;
      if (field.type !== "range") continue;
      field.nextElementSibling.textContent = withCommas(state[field.name]);
      if (field.matches(".log")) field.setAttribute("aria-valuetext", withCommas(state[field.name]));
    }
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const found = examine(state);
    const sentence = summarise(state, found);
    setFields(state);
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    find(".source").textContent = `Ceilings of ${state.device}, ${found.device.kind}: ${found.device.source}.`;
    find(".picture").hidden = asTable.checked;
    find(".tables").hidden = !asTable.checked;
    if (asTable.checked) find(".tables").replaceChildren(...makeTables(state, found));
    else {
      find(".roof").replaceChildren(drawRoofline(state, found));
      find(".legend").replaceChildren(...drawLegend(found));
    }
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  // Sizes other than the model's are custom ones.
  function setSizes(changes) {
    const state = { ...readState(), ...changes };
    const same = state.model !== CUSTOM && SIZES.every((name) => state[name] === state.models[state.model][name]);
    update({ ...changes, model: same ? state.model : CUSTOM });
  }

  function setField(field) {
    const { name, value } = field;
    const number = field.matches(".log") ? 2 ** Number(value) : Number(value);
    if (name === "model") update({ model: value, ...model.get("models")[value] });
    else if (name === "device") {
      const { flops_per_s } = model.get("devices").find((one) => one.name === value);
      const { dtype } = readState();
      update({ device: value, dtype: dtype in flops_per_s ? dtype : Object.keys(flops_per_s)[0] });
    } else if (name === "num_experts") setSizes({ num_experts: number, top_k: Math.min(readState().top_k, number) });
    else if (name === "top_k") setSizes({ top_k: number });
    else update({ [name]: name === "tokens" || name === "skew" ? number : value });
  }

  for (const field of fields) field.addEventListener("input", () => setField(field));
  asTable.addEventListener("change", schedule);
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  draw();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    cancelAnimationFrame(frame);
    el.replaceChildren();
  };
}

export default { render };
