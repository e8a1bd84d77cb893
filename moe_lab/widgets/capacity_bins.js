// Capacity bins: experts with a fixed number of places, whom they turn away, and what they leave empty.
// The first half is arithmetic without a page, the twin of capacity_bins.py; a test compares the two.

const OVERFLOWS = { drop: "drop", reroute: "reroute" };
const PRIORITIES = { order: "order: earlier tokens", score: "score: highest first", random: "random: drawn tokens" };
const TRAITS = ["tokens", "num_experts", "top_k", "capacity_factor", "skew", "overflow", "priority", "seed", "refused"];
const ORDINALS = ["first", "second", "third", "fourth"];
const [MOST_TOKENS, MOST_EXPERTS, MOST_TOP_K, MOST_FACTOR] = [64, 16, 4, 3];

// Number `count` of the stream `seed`, in 0..1: mulberry32.
export function uniform(seed, count) {
  const state = (seed + Math.imul(count + 1, 0x6d2b79f5)) | 0;
  let mixed = Math.imul(state ^ (state >>> 15), state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
}

// Gumbel noise - skew * log(expert + 1): first choices follow Zipf's law. In steps of 1/4096, so that differences are
// exact and ties are ties in both languages, whose logarithms differ in the last bit.
export function drawLogits(seed, tokens, numExperts, skew) {
  return times(tokens, (token) => times(numExperts, (expert) => {
    const chance = uniform(seed, MOST_EXPERTS * token + expert) + 2 ** -33; // strictly between 0 and 1
    const value = -Math.log(-Math.log(chance)) - skew * Math.log(expert + 1);
    return Math.floor(4096 * value + 0.5) / 4096;
  }));
}

// The tokens as they are served: as they come, the highest softmax weight first, or in a drawn order.
export function servingOrder({ priority, seed, tokens }, logits) {
  const keys = {
    order: (token) => token,
    score: (token) => -1 / sum(logits[token].map((logit) => Math.exp(logit - Math.max(...logits[token])))),
    random: (token) => uniform(seed, MOST_EXPERTS * MOST_TOKENS + token),
  };
  const key = times(tokens, keys[priority]);
  return times(tokens, (token) => token).sort((a, b) => key[a] - key[b] || a - b);
}

// Places of one expert; rounded first, because 1.1 * 50 / 5 is a little more than 11 in floating point.
export function capacityOf({ capacity_factor, tokens, top_k, num_experts }) {
  const places = (Math.min(capacity_factor, num_experts) * tokens * top_k) / num_experts;
  return Math.max(1, Math.ceil(Math.round(1e9 * places) / 1e9));
}

// Who ends where: for each token the experts it asked for first and those it got (-1 for none), and for each expert
// its bin, first come at the bottom.
export function place(state) {
  const { tokens, num_experts, top_k, overflow, seed, skew } = state;
  const logits = drawLogits(seed, tokens, num_experts, skew);
  const order = servingOrder(state, logits);
  const capacity = capacityOf(state);
  const ranked = logits.map((row) => times(num_experts, (expert) => expert).sort((a, b) => row[b] - row[a] || a - b));
  const asked = ranked.map((row) => row.slice(0, top_k));
  const experts = asked.map((row) => row.map(() => -1));
  const bins = times(num_experts, () => []);
  const hasRoom = (expert) => expert >= 0 && bins[expert].length < capacity;
  let [wishes, rerouted] = [asked, false];
  while (wishes.flat().some((expert) => expert >= 0)) {
    for (let slot = 0; slot < top_k; slot++) {
      for (const token of order) {
        const expert = wishes[token][slot];
        if (!hasRoom(expert)) continue;
        bins[expert].push({ token, slot, rerouted });
        experts[token][slot] = expert;
      }
    }
    // what waits asks for the best experts that have room and that its token does not hold
    const askAgain = (row, token) => {
      const open = ranked[token].filter((expert) => hasRoom(expert) && !row.includes(expert));
      return row.map((expert) => (expert < 0 && overflow === "reroute" ? open.shift() ?? -1 : -1));
    };
    [wishes, rerouted] = [experts.map(askAgain), true];
  }
  return { capacity, asked, experts, bins };
}

export function count({ tokens, num_experts, top_k }, { capacity, experts, bins }) {
  const lost = experts.map((row) => row.filter((expert) => expert < 0).length);
  const third = Math.floor(tokens / 3);
  const places = capacity * num_experts;
  return {
    capacity, asked: tokens * top_k, dropped: sum(lost),
    rerouted: bins.flat().filter((chip) => chip.rerouted).length,
    places, empty: places - bins.flat().length,
    early: sum(lost.slice(0, third)), late: sum(lost.slice(-third)),
  };
}

export function summarise({ capacity_factor, overflow }, { capacity, asked, dropped, rerouted, places, empty, late }) {
  const lost = overflow === "reroute" ? `${rerouted} of ${asked} assignments rerouted and ${dropped} dropped`
    : `${dropped} of ${asked} assignments dropped`;
  const who = dropped ? `; late tokens (the last third) lost ${late} of ${dropped}` : "";
  return `Capacity factor ${twoDecimals(capacity_factor)}, ${capacity} ${capacity === 1 ? "place" : "places"} ` +
    `an expert: ${lost}, ${empty} of ${places} places empty${who}.`;
}

// Like Python's :.2f, which rounds an exact tie (an odd number of eighths) to the even digit; toFixed rounds it up.
export function twoDecimals(value) {
  const tie = Number.isInteger(8 * value) && !Number.isInteger(4 * value);
  return (tie ? Math.round(50 * value) / 50 : value).toFixed(2);
}

const times = (length, make) => Array.from({ length }, (_, number) => make(number));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const [CELL_WIDTH, CELL_HEIGHT, CHIP_WIDTH, CHIP_HEIGHT] = [24, 16, 22, 15]; // what lies between keeps chips apart
const [MOST_ROWS, TRAY_COLUMNS] = [24, 16];

const options = (texts) => Object.entries(texts).map(([value, text]) => `<option value="${value}">${text}</option>`);
const VALUE = '<span aria-hidden="true"></span>'; // the number beside a slider, which says its own aloud
const PAGE = `
<div class="controls">
  <label>Tokens <input name="tokens" type="range" min="8" max="${MOST_TOKENS}">${VALUE}</label>
  <label>Experts <input name="num_experts" type="range" min="2" max="${MOST_EXPERTS}">${VALUE}</label>
  <label>Top-k <input name="top_k" type="range" min="1" max="${MOST_TOP_K}">${VALUE}</label>
  <label>Capacity factor
    <input name="capacity_factor" type="range" min="0.5" max="${MOST_FACTOR}" step="0.05">${VALUE}</label>
  <label>Skew <input name="skew" type="range" min="0" max="2" step="0.1">${VALUE}</label>
  <label>Overflow <select name="overflow">${options(OVERFLOWS).join("")}</select></label>
  <label>Priority <select name="priority">${options(PRIORITIES).join("")}</select></label>
  <label>Seed <input name="seed" type="number" min="0" max="2147483647"></label>
  <button type="button">New sample</button>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<div class="picture">
  <div class="gauges"></div>
  <p class="who"></p>
  <div class="legend"></div>
  <div class="flow"><div class="bins"></div><div class="tray"></div></div>
  <p class="hint">A bin is an expert, as tall as its capacity, filled from below in the order of service. Under it: its
    number, and how many of its places are taken. Over it: how many more assignments asked for it, before any was
    rerouted, than it has places. A chip is a token; its stripe tells which choice this is.</p>
</div>
<div class="tables" hidden></div>`;

function make(tag, attributes = {}, ...children) {
  const space = ["svg", "g", "path", "rect", "text"].includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// What marks a stripe beside its colour: nothing, slanting, lying or standing lines; an arrow for whoever was sent on.
const MARKS = {
  "choice-1": "", "choice-2": "M1 6 l5 -5 M1 10 l5 -5 M1 14 l5 -5", "choice-3": "M1 4 h5 M1 7.5 h5 M1 11 h5",
  "choice-4": "M2.3 1 v13 M4.7 1 v13", rerouted: "M2 4 l3.5 3.5 l-3.5 3.5",
};
const kindOf = ({ slot, rerouted }) => (rerouted ? "rerouted" : `choice-${slot + 1}`);

function drawChip(kind, token, x = 0, y = 0) {
  return make("g", { class: `chip ${kind}`, transform: `translate(${x} ${y})` },
    make("rect", { x: 0.5, y: 0.5, width: CHIP_WIDTH - 1, height: CHIP_HEIGHT - 1 }),
    make("rect", { class: "stripe", x: 1, y: 1, width: 5, height: CHIP_HEIGHT - 2 }),
    make("path", { d: MARKS[kind] }), make("text", { x: 14, y: 11 }, token));
}

// All empty places of a bin are one path, hundreds of them would be slow: frames, and lines that slant across.
function drawEmpty(corners) {
  const [right, bottom] = [CHIP_WIDTH - 1, CHIP_HEIGHT - 1];
  const lines = [5, 10, 15, 20, 25, 30].map((at) => {
    const [top, low] = [Math.max(1, at - right), Math.max(1, at - bottom)];
    return [at - top, top, low, at - low];
  });
  const outline = ([x, y]) => `M${x + 0.5} ${y + 0.5}h${right}v${bottom}h${-right}z` +
    lines.map(([x1, y1, x2, y2]) => `M${x + x1} ${y + y1}L${x + x2} ${y + y2}`).join("");
  return make("path", { class: "empty", d: corners.map(outline).join("") });
}

const drawPicture = (name, width, height, ...marks) =>
  make("svg", { role: "img", "aria-label": name, width, height }, ...marks);

const nameTokens = (chips) => {
  const tokens = [...new Set(chips.map(({ token }) => token))];
  return tokens.length ? `, ${tokens.length === 1 ? "token" : "tokens"} ${tokens.join(", ")}` : "";
};

function drawBin(expert, chips, capacity, columns, over) {
  const rows = Math.ceil(capacity / columns);
  const [width, height] = [columns * CELL_WIDTH + 6, rows * CELL_HEIGHT + 3];
  const corners = times(capacity, (number) =>
    [4 + (number % columns) * CELL_WIDTH, (rows - 1 - Math.floor(number / columns)) * CELL_HEIGHT]);
  const marks = chips.map((chip, number) => drawChip(kindOf(chip), chip.token, ...corners[number]));
  const wall = make("path", { class: "wall", d: `M1 0 V${height - 1} H${width - 1} V0` });
  const taken = `${chips.length}/${capacity}`;
  const name = `Expert ${expert}, ${chips.length} of ${capacity} places taken${nameTokens(chips)}`;
  return make("div", {}, make("span", {}, over > 0 ? `+${over}` : "\u00a0"),
    drawPicture(name, width, height, drawEmpty(corners.slice(chips.length)), ...marks, wall),
    make("b", {}, expert), make("span", {}, taken));
}

function drawTray(chips, asked) {
  const rows = Math.max(1, Math.ceil(chips.length / TRAY_COLUMNS));
  const marks = chips.map((chip, number) => drawChip(kindOf(chip), chip.token,
    (number % TRAY_COLUMNS) * CELL_WIDTH, Math.floor(number / TRAY_COLUMNS) * CELL_HEIGHT));
  const name = `Tray, ${chips.length} of ${asked} assignments dropped${nameTokens(chips)}`;
  return [make("b", {}, `Dropped: ${chips.length} of ${asked}`),
    drawPicture(name, TRAY_COLUMNS * CELL_WIDTH, rows * CELL_HEIGHT, ...marks)];
}

function drawGauge(name, kind, part, whole, of) {
  const value = percent(part, whole);
  return make("div", { role: "img", "aria-label": `${name} ${value}, ${part} of ${whole} ${of}` },
    make("b", {}, name),
    make("span", { class: "track" }, make("i", { class: kind, style: `width:${(100 * part) / whole}%` })),
    make("span", {}, `${value} of the ${of}`));
}

function drawLegend({ top_k, overflow }) {
  const items = times(top_k, (slot) => [drawChip(`choice-${slot + 1}`, "7"), `${ORDINALS[slot]} choice`]);
  if (overflow === "reroute") items.push([drawChip("rerouted", "7"), "rerouted"]);
  items.push([drawEmpty([[0, 0]]), "empty place: padding"]);
  return items.map(([mark, text]) => make("span", {},
    make("svg", { "aria-hidden": "true", width: CHIP_WIDTH, height: CHIP_HEIGHT }, mark), text));
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

const demandOf = ({ asked, bins }) => bins.map((_, expert) => asked.flat().filter((other) => other === expert).length);

// What became of one choice, in words.
function nameFate(asked, got) {
  if (got < 0) return `dropped, asked for expert ${asked}`;
  return got === asked ? `expert ${got}` : `expert ${got}, rerouted from ${asked}`;
}

function makeTables(state, placed, found) {
  const { top_k, tokens } = state;
  const demand = demandOf(placed);
  const inThird = Math.floor(tokens / 3) * top_k;
  const ofThird = (part) => `${part} of ${inThird} assignments (${percent(part, inThird)})`;
  return [
    makeTable("Totals", ["What", "How many"], [
      ["Dropped", `${found.dropped} of ${found.asked} assignments (${percent(found.dropped, found.asked)})`],
      ["Rerouted", `${found.rerouted} of ${found.asked} assignments`],
      ["Padding", `${found.empty} of ${found.places} places (${percent(found.empty, found.places)})`],
      ["Dropped of the first third", ofThird(found.early)],
      ["Dropped of the last third", ofThird(found.late)],
    ]),
    makeTable("Experts", ["Expert", "Asked for first", "Places", "Taken", "Empty"], placed.bins.map((chips, expert) =>
      [expert, demand[expert], found.capacity, chips.length, found.capacity - chips.length])),
    makeTable("Tokens", ["Token", ...times(top_k, (slot) => `Choice ${slot + 1}`)], placed.experts.map((row, token) =>
      [token, ...row.map((got, slot) => nameFate(placed.asked[token][slot], got))])),
  ];
}

function render({ model, el }) {
  const root = make("div", { class: "capacity-bins" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const fields = [...root.querySelectorAll("[name]")];
  const asTable = find(".as-table");
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  let frame = 0;

  // The state under the traits' names, made to fit where only one of two traits has arrived.
  function readState() {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    return { ...state, top_k: Math.min(state.top_k, state.num_experts) };
  }

  function drawBins(state, placed, found) {
    // the columns do not depend on the capacity factor: while it changes, height alone tells the capacity
    const columns = Math.ceil(capacityOf({ ...state, capacity_factor: MOST_FACTOR }) / MOST_ROWS);
    const demand = demandOf(placed);
    const inThird = Math.floor(state.tokens / 3) * state.top_k;
    const dropped = placed.experts.flatMap((row, token) =>
      row.flatMap((expert, slot) => (expert < 0 ? [{ token, slot }] : [])));
    find(".gauges").replaceChildren(drawGauge("Dropped", "lost", found.dropped, found.asked, "assignments"),
      drawGauge("Padding", "padding", found.empty, found.places, "places"));
    find(".who").textContent = `Who is dropped: ${percent(found.early, inThird)} of what the first third of the ` +
      `tokens asked for, ${percent(found.late, inThird)} of what the last third did.`;
    find(".legend").replaceChildren(...drawLegend(state));
    find(".bins").replaceChildren(...placed.bins.map((chips, expert) =>
      drawBin(expert, chips, found.capacity, columns, demand[expert] - found.capacity)));
    find(".tray").replaceChildren(...drawTray(dropped, found.asked));
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const placed = place(state);
    const found = count(state, placed);
    const sentence = summarise(state, found);
    find("[name=top_k]").max = Math.min(MOST_TOP_K, state.num_experts);
    for (const field of fields) {
      if (field.value !== String(state[field.name])) field.value = state[field.name];
      if (field.type === "range") field.nextElementSibling.textContent = state[field.name];
    }
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    find(".picture").hidden = asTable.checked;
    find(".tables").hidden = !asTable.checked;
    if (asTable.checked) find(".tables").replaceChildren(...makeTables(state, placed, found));
    else drawBins(state, placed, found);
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  function setField({ name, value }) {
    const number = Number(value);
    if (name in { overflow: 0, priority: 0 }) update({ [name]: value });
    else if (name === "num_experts") update({ num_experts: number, top_k: Math.min(readState().top_k, number) });
    else if (name !== "seed") update({ [name]: number });
    else if (value !== "" && Number.isInteger(number) && number >= 0 && number < 2 ** 31) update({ seed: number });
  }

  for (const field of fields) field.addEventListener("input", () => setField(field));
  asTable.addEventListener("change", schedule);
  find("button").addEventListener("click", () => setField({ name: "seed", value: (model.get("seed") + 1) % 2 ** 31 }));
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  draw();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    cancelAnimationFrame(frame);
    el.replaceChildren();
  };
}

export default { render };
