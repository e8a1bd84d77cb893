// Who goes where: which experts read each byte of a text, and whether that tells more than shuffled labels would.
// The first part is arithmetic without a page, the twin of who_goes_where.py, which asks the library; a test compares
// the two.

const READING = ["texts", "label_names", "num_experts", "reads", "read_pasted", "error"];
const SETTINGS = ["text", "layer", "slot", "metric", "labels", "together", "length", "shuffle", "seed", "expert"];
const TRAITS = [...READING, ...SETTINGS, "pasted", "refused"];
const TEXT = "text"; // the label that says which text a byte is from; it needs all of them
const STRETCH = 64; // it stays the same over a text, so it is shuffled by stretches of so many bytes
const SHUFFLES = 100;
const ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];

const times = (length, make) => Array.from({ length }, (_, number) => make(number));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const nameSlot = (slot) => (slot < 0 ? "all choices" : `${ORDINALS[slot] ?? `number ${slot + 1}`} choice`);
const bits = (value) => value.toFixed(2);
const perCent = (part) => `${Math.floor(100 * part + 0.5)} %`;
export const kindsOf = ({ label_names, texts }) => [...Object.keys(label_names), ...(texts.length > 1 ? [TEXT] : [])];

// The settings, as near to what they were as these texts allow.
export function fit(state) {
  const { texts, expert } = state;
  const text = Math.min(state.text, texts.length - 1);
  const { experts, pieces } = texts[text];
  const labels = kindsOf(state).includes(state.labels) ? state.labels : kindsOf(state)[0];
  const together = state.together || labels === TEXT;
  const longest = together ? Math.max(...texts.map((one) => one.pieces.length)) : pieces.length;
  return { ...state, text, labels, together, longest, layer: Math.min(state.layer, experts.length - 1),
    slot: Math.min(state.slot, experts[0][0].length - 1), length: Math.min(state.length || longest, longest),
    expert: expert < state.num_experts ? expert : -1 };
}

// Number `count` of the stream `seed`, in 0..1: mulberry32.
export function uniform(seed, count) {
  const state = (seed + Math.imul(count + 1, 0x6d2b79f5)) | 0;
  let mixed = Math.imul(state ^ (state >>> 15), state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
}

// What was made of these numbers, for the last few of them.
function remember(make) {
  const known = new Map();
  return (...given) => {
    const key = given.join();
    if (!known.has(key)) known.set(key, make(...given));
    if (known.size > 4) known.delete(known.keys().next().value);
    return known.get(key);
  };
}

// Orders of so many units, drawn: in shuffle s, unit u gets the label of unit orders[s][u].
export const drawOrders = remember((seed, units) => times(SHUFFLES, (shuffle) => {
  const keys = new Float64Array(units); // sorted as numbers, the place of each below its draw
  for (let unit = 0; unit < units; unit++) keys[unit] = uniform(seed, shuffle * units + unit) * 2 ** 48 + unit;
  return Uint16Array.from(keys.sort(), (key) => key % 2 ** 16);
}));

// What is counted: tokens in units that are shuffled as a whole, each unit's label, and in each layer the experts that
// were asked for, `width` a token in one list.
export function sampleOf({ texts, text, label_names, slot, together, length }, labels) {
  const byText = labels === TEXT;
  const chosen = together || byText ? texts : [texts[text]];
  const [ids, units] = [[], []];
  chosen.forEach(({ pieces, labels: own }, number) => {
    const [first, count] = [ids.length, Math.min(length, pieces.length)];
    for (let byte = 0; byte < count; byte++) units.push(first + (byText ? Math.floor(byte / STRETCH) : byte));
    if (byText) ids.push(...times(Math.ceil(count / STRETCH), () => number));
    else ids.push(...own[labels].slice(0, length));
  });
  const experts = texts[0].experts.map((_, layer) => Int16Array.from(chosen.flatMap((one) => one.experts[layer]
    .slice(0, length).flatMap((row) => (slot < 0 ? row : row[slot])))));
  const names = byText ? texts.map(({ name }) => name) : label_names[labels];
  return { names, ids, units, experts, width: experts[0].length / units.length };
}

// Assignments of each label (rows) to each expert (columns), in one list; in an order, of shuffled labels.
export function countPairs({ ids, units, experts, names, width }, layer, numExperts, order = null) {
  const counts = new Int32Array(names.length * numExperts);
  const asked = experts[layer];
  for (let token = 0; token < units.length; token++) { // plain loops: they run a million times a drawing
    const first = numExperts * ids[order ? order[units[token]] : units[token]];
    for (let at = token * width; at < (token + 1) * width; at++) if (asked[at] >= 0) counts[first + asked[at]] += 1;
  }
  return counts;
}

// Sums over the rows and over the columns of such a list, and over all of it.
function marginsOf(counts, numExperts) {
  const [rows, columns] = [Array(counts.length / numExperts).fill(0), Array(numExperts).fill(0)];
  for (let at = 0; at < counts.length; at++) {
    rows[Math.floor(at / numExperts)] += counts[at];
    columns[at % numExperts] += counts[at];
  }
  return { rows, columns, total: sum(columns) };
}

// Mutual information in bits: sum of n / N log2(n N / (row column)).
export function informationOf(counts, numExperts) {
  const { rows, columns, total } = marginsOf(counts, numExperts);
  let found = 0;
  for (let at = 0; at < counts.length; at++) {
    if (!counts[at]) continue;
    found += counts[at] * pmiOf(counts[at], rows[Math.floor(at / numExperts)], columns[at % numExperts], total);
  }
  return Math.max(0, Math.round((1e12 * found) / Math.max(1, total)) / 1e12); // what rounding leaves of nothing
}

// Bits by which a pair is more frequent than its row and column alone would make it; -Infinity where there is none.
export const pmiOf = (count, row, column, total) => Math.log2((count * total) / (row * column));

// From the 2.5th to the 97.5th percentile, a straight line between neighbours, and the mean.
function rangeOf(values) {
  const sorted = Float64Array.from(values).sort();
  const at = (share) => {
    const [place, part] = [Math.floor(share * (sorted.length - 1)), (share * (sorted.length - 1)) % 1];
    return sorted[place] + part * (sorted[Math.min(place + 1, sorted.length - 1)] - sorted[place]);
  };
  return { low: at(0.025), mean: sum(values) / values.length, high: at(0.975) };
}

// The information of labels and experts in one layer, that of the shuffled ones, and the counts of all.
function inform(state, sample, layer) {
  const counts = countPairs(sample, layer, state.num_experts);
  const shuffled = drawOrders(state.seed, sample.ids.length)
    .map((order) => countPairs(sample, layer, state.num_experts, order));
  const chance = rangeOf(shuffled.map((one) => informationOf(one, state.num_experts)));
  return { counts, shuffled, bits: informationOf(counts, state.num_experts), chance };
}

// Experts of a layer that these bytes leave idle, and the share that as many bytes drawn at random would: with the
// loads of all texts together, cut to whole stretches of this length, and with equal loads.
function idleOf({ num_experts: numExperts }, counts, tokens, all, layer) {
  const load = marginsOf(counts, numExperts).columns;
  const whole = Math.floor(all.units.length / tokens) * tokens;
  const visits = Array(numExperts).fill(0);
  for (const expert of all.experts[layer].subarray(0, whole * all.width)) if (expert >= 0) visits[expert] += 1;
  const equal = (1 - sum(load) / tokens / numExperts) ** tokens;
  const same = sum(visits.map((count) => (1 - count / whole) ** tokens)) / numExperts;
  return { load, idle: load.filter((count) => !count).length, same, equal };
}

// Everything that is shown of a state that fits: each layer, and the pairs of the chosen one.
export function examine(state) {
  const sample = sampleOf(state, state.labels);
  const all = sampleOf({ ...state, length: Infinity }, TEXT);
  const layers = times(sample.experts.length, (layer) => {
    const found = inform(state, sample, layer);
    return { ...found, ...idleOf(state, found.counts, sample.units.length, all, layer) };
  });
  const { counts, shuffled } = layers[state.layer];
  const ranges = Array.from(counts, (_, at) => rangeOf(shuffled.map((one) => one[at])));
  const [pairs, mixed] = [counts, shuffled[0]].map((one) => pairsOf(one, ranges, state));
  return { sample, layers, ranges, pairs, mixed };
}

// A row for each label that occurs: its name's number, and for each expert the count, its PMI, and whether chance alone
// gives such counts.
function pairsOf(counts, ranges, { num_experts: numExperts }) {
  const { rows, columns, total } = marginsOf(counts, numExperts);
  const cell = (at, row, expert) => ({ count: counts[at], pmi: pmiOf(counts[at], rows[row], columns[expert], total),
    chance: counts[at] >= ranges[at].low && counts[at] <= ranges[at].high });
  return rows.flatMap((sumOfRow, row) => (sumOfRow ? [{ row, total: sumOfRow,
    cells: columns.map((_, expert) => cell(row * numExperts + expert, row, expert)) }] : []));
}

// Every kind of label in every layer: bits, and bits of shuffled labels.
export const compareLabels = (state) => kindsOf(state).map((name) => {
  const sample = sampleOf(state, name);
  return { name, cells: times(sample.experts.length, (layer) => inform(state, sample, layer)) };
});

// The pair with the most assignments beyond what its row and column give, of those that chance does not explain.
function strongest(pairs) {
  let [best, most] = [null, 0];
  for (const { row, cells } of pairs) {
    cells.forEach(({ count, pmi, chance }, expert) => {
      if (chance || !count || count * pmi <= most) return;
      [best, most] = [{ row, expert, pmi }, count * pmi];
    });
  }
  return best;
}

export function summarise(state, found = examine(state)) {
  const { sample, layers, pairs } = found;
  const { layer, labels, texts, num_experts: numExperts } = state;
  const { bits: said, chance, idle, same } = layers[layer];
  const where = state.together ? `all ${texts.length} texts` : `“${texts[state.text].name}”`;
  const cells = pairs.flatMap((row) => row.cells);
  const outside = cells.filter((cell) => !cell.chance).length;
  const best = strongest(pairs);
  const verdict = said > chance.high ? "more than chance" : "no more than chance";
  const telling = best ? `; the strongest is “${sample.names[best.row]}” at expert ${best.expert}, ` +
    `${bits(best.pmi)} bits` : "";
  return `Layer ${layer}, ${nameSlot(state.slot)}, ${sample.units.length} bytes of ${where}: the expert says ` +
    `${bits(said)} bits about the ${labels}, ${verdict}, for with shuffled labels it says ${bits(chance.low)} to ` +
    `${bits(chance.high)}. ${outside} of ${cells.length} pairs lie outside what shuffling gives${telling}. These ` +
    `bytes leave ${perCent(idle / numExperts)} of the experts idle; bytes at random with the loads of all texts ` +
    `would leave ${perCent(same)}.`;
}

// "byte 3, e: token class letter; layer 0, expert 5 and 2; …"
export function sayByte({ texts, text, label_names }, byte) {
  const { pieces, labels, experts } = texts[text];
  const kinds = Object.entries(label_names).map(([kind, names]) => `${kind} ${names[labels[kind][byte]]}`);
  const layers = experts.map((rows, layer) =>
    `layer ${layer}, ${rows[byte].filter((expert) => expert >= 0).join(" and ") || "no expert"}`);
  return `Byte ${byte}, ${pieces[byte]}: ${kinds.join(", ")}; ${layers.join("; ")}.`;
}

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const TYPING_MS = 250; // wait until the typing pauses
const ANSWER_MS = 3000; // then give a kernel this long
const METRICS = { share: "Share of the label, %", pmi: "PMI, bits", information: "Mutual information, bits" };

const PAGE = `
<div class="controls">
  <label>Text <select name="text"></select></label>
  <label>Layer <select name="layer"></select></label>
  <label>Choice <select name="slot"></select></label>
  <label>Labels <select name="labels"></select></label>
  <label>Table <select name="metric"></select></label>
  <label>Bytes <input name="length" type="range" min="16" step="16"><span aria-hidden="true"></span></label>
  <label><input name="together" type="checkbox"> Count all texts together</label>
  <label><input name="shuffle" type="checkbox"> Shuffle the labels beside</label>
  <label>Seed <input name="seed" type="number" min="0" max="2147483647"></label>
  <button type="button" class="again">New sample</button>
  <label><input class="as-table" type="checkbox"> Text as table</label>
</div>
<details><summary>Paste a text of your own</summary>
  <label>Text to read <textarea rows="3" spellcheck="false"></textarea></label></details>
<p class="notice" role="status"></p>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<div class="legend" role="group" aria-label="Experts; arrow keys move between them and show whose bytes they are"></div>
<div class="bytes" role="slider" tabindex="0" aria-label="Bytes of the text" aria-valuemin="0"></div>
<div class="bytes-table" tabindex="0" role="group" aria-label="Bytes of the text as a table"></div>
<p class="byte"></p>
<div class="figures">
  <div class="loads scroll" tabindex="0" role="group" aria-label="Loads"></div>
  <div class="layers scroll" tabindex="0" role="group" aria-label="Bits and idle experts by layer"></div>
</div>
<div class="figures pairs"></div>
<p class="hint">Press an expert, or a cell of the loads, to see only its bytes. ≈ is as chance: 95 of 100 shuffles of
  the labels lie there, so of cells that mean nothing one in twenty goes without the mark; – is never. PMI is log2 of a
  pair's frequency over what its label and its expert alone would give; its mean over all bytes is the mutual
  information. A short text says some bits by chance alone, and more the finer the labels are. Shuffling byte by byte
  does not know that neighbours resemble each other, so a little more than chance is little evidence; texts are shuffled
  by stretches of ${STRETCH} bytes.</p>`;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Colours repeat after eight experts and the patterns then move on by one, so that 64 pairs all differ.
const swatch = (expert) => (expert < 0 ? "" : `colour-${expert % 8} pattern-${(expert + Math.floor(expert / 8)) % 8}`);

// A table with a heading for each column and row; cells are texts, or td elements that are there already.
function makeTable(kind, caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) => make("tr", {}, make("th", { scope: "row" }, first),
    ...rest.map((cell) => (cell instanceof Element ? cell : make("td", {}, cell)))));
  const parts = [make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body)];
  return make("table", { class: kind }, ...parts);
}

// What may be wider than the page: with the keyboard it scrolls too.
const makeScroll = (name, ...children) =>
  make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": name, [QUIET]: "" }, ...children);

// The bytes in lines, as the text has them.
function drawBytes({ texts, text, layer, slot, expert, length }) {
  const { pieces, experts } = texts[text];
  return pieces.slice(0, length).flatMap((piece, byte) => {
    const row = experts[layer][byte].filter((one) => one >= 0);
    const asked = slot < 0 ? row : row.slice(slot, slot + 1);
    const shown = expert < 0 ? asked[0] ?? -1 : asked.includes(expert) ? expert : -1;
    const numbers = shown === expert ? [expert] : asked.slice(0, 2);
    const chip = make("span", { class: `chip ${swatch(shown)}`, "data-byte": byte, "aria-hidden": "true" },
      make("span", {}, piece), make("b", {}, numbers.join(" ") || "–"), make("i"));
    return piece === "⏎" ? [chip, make("br")] : [chip];
  });
}

function drawBytesTable({ texts, text, label_names, labels, length }) {
  const { pieces, experts, labels: ids } = texts[text];
  const shown = labels === TEXT ? Object.keys(label_names)[0] : labels;
  const header = ["Byte", "Sign", shown, ...experts.map((_, at) => `Layer ${at}`)];
  return makeTable("plain", `Bytes of ${texts[text].name}`, header,
    pieces.slice(0, length).map((piece, byte) => [byte, piece, label_names[shown][ids[shown][byte]],
      ...experts.map((rows) => rows[byte].filter((one) => one >= 0).join(", ") || "none")]));
}

const shade = (colour, part) => `background: color-mix(in srgb, ${colour} ${Math.round(50 * part)}%, var(--paper))`;

// Assignments of each expert in every layer; the more, the darker.
function drawLoads(state, { layers }) {
  const most = Math.max(1, ...layers.flatMap(({ load }) => load));
  const head = times(state.num_experts, (expert) => make("span", {}, expert, make("i", { class: swatch(expert) })));
  const rows = layers.map(({ load }, layer) => [`Layer ${layer}${layer === state.layer ? ", shown" : ""}`,
    ...load.map((count, expert) => make("td", { style: shade("#0072b2", count / most), "data-layer": layer,
      "data-expert": expert, class: expert === state.expert ? "chosen" : "" }, count))]);
  return makeTable("heat", `Load of each expert, ${nameSlot(state.slot)}`, ["", ...head], rows);
}

// Bits in every layer as a bar over the range of shuffled labels, and the idle experts beside random routers'.
function drawLayers(state, { layers }) {
  const most = Math.max(1e-9, ...layers.flatMap((one) => [one.bits, one.chance.high]));
  const share = (value) => `${(100 * value) / most}%`;
  const rows = layers.map(({ bits: said, chance, idle: none, same, equal }, layer) => {
    const bar = make("div", { class: "track", "aria-hidden": "true" },
      make("i", { class: "bar", style: `width: ${share(said)}` }),
      make("i", { class: "chance", style: `left: ${share(chance.low)}; width: ${share(chance.high - chance.low)}` }));
    return [`Layer ${layer}`, make("td", {}, bar), bits(said), `${bits(chance.low)} to ${bits(chance.high)}`,
      `${none} (${perCent(none / state.num_experts)})`, perCent(same), perCent(equal)];
  });
  const idle = ["Idle", "Random, loads of all texts", "Random, equal loads"];
  const header = ["", "▬ said, ▨ by chance", "Bits", "Shuffled", ...idle];
  return makeTable("plain", `What the expert says about the ${state.labels}, and experts left idle`, header, rows);
}

const mark = (chance, text) => (chance ? `≈ ${text}` : text);

function makeCell({ count, pmi, chance }, total, { low, high }, metric) {
  const text = metric === "share" ? `${Math.floor((100 * count) / total + 0.5)}` : count ? pmi.toFixed(1) : "–";
  const title = `${count} of ${total}; shuffled ${low} to ${high}${chance ? ", as chance" : ""}`;
  const style = chance ? "" : shade(pmi > 0 ? "#e69f00" : "#56b4e9", Math.min(1, Math.abs(pmi) / 3));
  return make("td", { title, style }, mark(chance, text));
}

function drawPairs(state, pairs, { sample, ranges }, caption) {
  const { metric, num_experts: numExperts } = state;
  const rows = pairs.map(({ row, total, cells }) => [`${sample.names[row]} (${total})`,
    ...cells.map((cell, expert) => makeCell(cell, total, ranges[row * numExperts + expert], metric))]);
  return makeScroll(caption, makeTable("heat", caption, ["", ...times(numExperts, (expert) => `${expert}`)], rows));
}

function drawInformation(state) {
  const found = compareLabels(state);
  const most = Math.max(1e-9, ...found.flatMap(({ cells }) => cells.map((cell) => cell.bits)));
  const rows = found.map(({ name, cells }) => [name, ...cells.flatMap(({ bits: said, chance }) => {
    const asChance = said <= chance.high;
    return [make("td", { style: asChance ? "" : shade("#e69f00", said / most) }, mark(asChance, bits(said))),
      `${bits(chance.low)} to ${bits(chance.high)}`];
  })]);
  return makeTable("heat", "Bits that the expert says about each label, and about shuffled ones",
    ["", ...found[0].cells.flatMap((_, layer) => [`Layer ${layer}`, "shuffled"])], rows);
}

function drawTables(state, found) {
  if (state.metric === "information") return [makeScroll("Bits by label and layer", drawInformation(state))];
  const name = `${METRICS[state.metric]}: ${state.labels} by expert, layer ${state.layer}`;
  const own = drawPairs(state, found.pairs, found, name);
  return state.shuffle ? [own, drawPairs(state, found.mixed, found, `${name}, labels shuffled`)] : [own];
}

// Where a key leads from one of 0..last, if anywhere.
function stepTo(key, here, last) {
  const [back, on] = [Math.max(0, here - 1), Math.min(last, here + 1)];
  return { ArrowLeft: back, ArrowUp: back, ArrowRight: on, ArrowDown: on, Home: 0, End: last }[key];
}

function render({ model, el }) {
  const root = make("div", { class: "who-goes-where" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const fields = [...root.querySelectorAll("[name]")];
  const [bytes, legend, textarea, asTable] = [".bytes", ".legend", "textarea", ".as-table"].map(find);
  const controls = root.querySelectorAll("input, select, button, textarea, summary, [tabindex]");
  for (const control of controls) control.setAttribute(QUIET, "");
  let [frame, typing, answer, current, unanswered] = [0, 0, 0, 0, false];

  const readState = () => fit(Object.fromEntries(TRAITS.map((name) => [name, model.get(name)])));

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  // Options are made anew only where others are offered, so that an open list stays open.
  function fill(select, offered) {
    const wanted = JSON.stringify(offered);
    if (select.dataset.offered === wanted) return;
    select.dataset.offered = wanted;
    select.replaceChildren(...offered.map(([value, text]) => make("option", { value }, text)));
  }

  function setFields(state) {
    const { texts, layer } = state;
    fill(find("[name=text]"), texts.map(({ name }, at) => [at, name]));
    fill(find("[name=layer]"), texts[0].experts.map((_, at) => [at, at]));
    fill(find("[name=slot]"), [...texts[0].experts[layer][0].map((_, at) => [at, nameSlot(at)]), [-1, nameSlot(-1)]]);
    fill(find("[name=labels]"), kindsOf(state).map((kind) => [kind, kind]));
    fill(find("[name=metric]"), Object.entries(METRICS));
    find("[name=length]").max = 16 * Math.ceil(state.longest / 16);
    find("[name=length]").nextElementSibling.textContent = state.length;
    find("[name=together]").disabled = state.labels === TEXT;
    for (const field of fields) {
      if (field.type === "checkbox") field.checked = state[field.name];
      else if (field.value !== String(state[field.name])) field.value = state[field.name];
    }
    if (!typing && textarea.value !== state.pasted) textarea.value = state.pasted;
    textarea.disabled = !state.reads;
  }

  function drawLegend(state, load) {
    if (legend.children.length !== load.length) legend.replaceChildren(...load.map((_, expert) =>
      make("button", { type: "button", [QUIET]: "", class: swatch(expert), "data-expert": expert },
        make("i"), make("b", {}, expert), make("span"))));
    load.forEach((count, expert) => {
      const entry = legend.children[expert];
      entry.lastChild.textContent = count;
      entry.tabIndex = expert === Math.max(0, state.expert) ? 0 : -1;
      entry.setAttribute("aria-label", `expert ${expert}, ${count} ${count === 1 ? "byte" : "bytes"}`);
      entry.setAttribute("aria-pressed", expert === state.expert);
    });
  }

  function inspect(state, byte) {
    const last = Math.min(state.length, state.texts[state.text].pieces.length) - 1;
    current = Math.max(0, Math.min(last, byte));
    const said = sayByte(state, current);
    bytes.querySelector(".current")?.classList.remove("current");
    bytes.querySelector(`[data-byte="${current}"]`)?.classList.add("current");
    const values = { now: current, max: last, text: said };
    for (const [name, value] of Object.entries(values)) bytes.setAttribute(`aria-value${name}`, value);
    find(".byte").textContent = said;
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const found = examine(state);
    const sentence = summarise(state, found);
    setFields(state);
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    [bytes.hidden, find(".bytes-table").hidden] = [asTable.checked, !asTable.checked];
    bytes.replaceChildren(...(asTable.checked ? [] : drawBytes(state)));
    find(".bytes-table").replaceChildren(...(asTable.checked ? [drawBytesTable(state)] : []));
    inspect(state, current);
    drawLegend(state, found.layers[state.layer].load);
    find(".loads").replaceChildren(drawLoads(state, found));
    find(".layers").replaceChildren(drawLayers(state, found));
    find(".pairs").replaceChildren(...drawTables(state, found));
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  // The kernel says which pasted text it has read; where it never does, there is no kernel.
  function awaitAnswer() {
    clearTimeout(answer);
    unanswered = false;
    if (model.get("read_pasted") !== model.get("pasted")) {
      answer = setTimeout(() => { unanswered = true; drawNotice(); }, ANSWER_MS);
    }
    drawNotice();
  }

  function drawNotice() {
    const waiting = model.get("read_pasted") !== model.get("pasted");
    const given = model.get("reads") ? "" : "There is no model behind these routings, so other texts cannot be read.";
    const alone = "No kernel answers, so your text is not read. The others were read before.";
    find(".notice").textContent = unanswered ? alone : waiting ? "Reading …" : model.get("error") || given;
  }

  function setField({ name, type, value, checked }) {
    if (name === "seed" && !(/^\d+$/.test(value) && Number(value) < 2 ** 31)) return;
    update({ [name]: type === "checkbox" ? checked : ["labels", "metric"].includes(name) ? value : Number(value) });
  }

  function showExpert(expert, changes = {}) {
    update({ ...changes, expert });
    if (expert >= 0 && legend.contains(document.activeElement)) legend.children[expert].focus();
  }

  for (const field of fields) field.addEventListener("input", () => setField(field));
  asTable.addEventListener("change", schedule);
  find(".again").addEventListener("click", () => update({ seed: (model.get("seed") + 1) % 2 ** 31 }));
  textarea.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      typing = 0;
      update({ pasted: textarea.value.toWellFormed?.() ?? textarea.value });
    }, TYPING_MS);
  });
  const numberAt = ({ target }, name) => Number(target.closest(`[data-${name}]`)?.dataset[name] ?? NaN);
  legend.addEventListener("click", (event) => {
    const expert = numberAt(event, "expert");
    if (expert >= 0) showExpert(expert === readState().expert ? -1 : expert);
  });
  legend.addEventListener("keydown", (event) => {
    const [here, last] = [numberAt(event, "expert"), legend.children.length - 1];
    const next = event.key === "Escape" ? -1 : stepTo(event.key, here, last);
    if (next === undefined) return;
    event.preventDefault();
    showExpert(next);
  });
  find(".loads").addEventListener("click", (event) => {
    const expert = numberAt(event, "expert");
    if (expert >= 0) showExpert(expert, { layer: numberAt(event, "layer") });
  });
  bytes.addEventListener("pointerover", (event) => {
    const byte = numberAt(event, "byte");
    if (byte >= 0) inspect(readState(), byte);
  });
  bytes.addEventListener("keydown", (event) => {
    const next = stepTo(event.key, current, Infinity);
    if (next === undefined) return;
    event.preventDefault();
    inspect(readState(), next);
    bytes.querySelector(".current")?.scrollIntoView({ block: "nearest" });
  });
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  for (const name of ["pasted", "read_pasted", "error"]) model.on(`change:${name}`, awaitAnswer);
  draw();
  awaitAnswer();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    for (const name of ["pasted", "read_pasted", "error"]) model.off(`change:${name}`, awaitAnswer);
    cancelAnimationFrame(frame);
    clearTimeout(typing);
    clearTimeout(answer);
    el.replaceChildren();
  };
}

export default { render };
