// Memory tracer: which elements each program of a kernel loads, stores and masks, step by step.
// The first half is arithmetic without a page, the twin of memory_tracer.py; a test compares the two.

const DATA = ["tensors", "names", "patterns", "steps", "programs", "launches", "sources", "reference"];
const TRAITS = [...DATA, "program", "step", "count", "refused"];
const COUNTS = ["so far", "all programs"];
const KINDS = ["load", "store", "atomic", "dot"];
const FIELDS = ["kind", "tensor", "touched", "held", "elements", "masked", "bytes", "flops", "sectors",
  "least_sectors", "outside", "source"];
const AT = Object.fromEntries(FIELDS.map((field, at) => [field, at]));
const SUMS = ["bytes_read", "bytes_written", "flops", "sectors", "least_sectors"];
const COUNTED = { read: ["load", "atomic"], written: ["store", "atomic"] };

const times = (length, make) => Array.from({ length }, (_, number) => make(number));
const product = (sizes) => sizes.reduce((all, size) => all * size, 1);

// Runs "start+length*times" as [start, length, times].
export function unpack(pattern) {
  return pattern.split(" ").filter(Boolean).map((run) => {
    const [place, many = "1"] = run.split("*");
    const [start, length = "1"] = place.split("+");
    return [Number(start), Number(length), Number(many)];
  });
}

// A step under the names of its fields, its kind and tensor as words.
export function nameStep(state, number) {
  const step = Object.fromEntries(FIELDS.map((field, at) => [field, state.steps[number][at]]));
  return { ...step, kind: KINDS[step.kind], tensor: state.names[step.tensor] ?? null };
}

// The steps of a program: the number of its first one, how many, and where it stands in its grid.
export function nameProgram(state, program) {
  const [launch, first, count, ...place] = state.programs[program];
  return { kernel: state.launches[launch], first, count, place };
}

// The state, made to fit where only one of two traits has arrived.
export function fit(state) {
  const program = Math.min(state.program, state.programs.length - 1);
  return { ...state, program, step: Math.max(0, Math.min(state.step, state.programs[program][2] - 1)) };
}

// One step on or back, through all programs; stays at both ends.
export function move(state, by) {
  const { programs, program, step } = state;
  const next = step + by;
  if (next >= 0 && next < programs[program][2]) return { program, step: next };
  for (let other = program + by; other >= 0 && other < programs.length; other += by) {
    if (programs[other][2]) return { program: other, step: by > 0 ? 0 : programs[other][2] - 1 };
  }
  return { program, step };
}

// What steps start..stop - 1 add up to. An atomic is both read and written.
export function addUp(state, start, stop) {
  const total = Object.fromEntries(SUMS.map((name) => [name, 0]));
  for (let number = start; number < stop; number += 1) {
    const step = state.steps[number];
    if (COUNTED.read.includes(KINDS[step[AT.kind]])) total.bytes_read += step[AT.bytes];
    if (COUNTED.written.includes(KINDS[step[AT.kind]])) total.bytes_written += step[AT.bytes];
    for (const name of ["flops", "sectors", "least_sectors"]) total[name] += step[AT[name]];
  }
  return total;
}

// How often steps start..stop - 1 read, or wrote, each element of a drawn tensor.
export function countOf(state, tensor, start, stop) {
  const { shape, counted } = state.tensors[tensor];
  const counts = new Array(product(shape)).fill(0);
  const runs = new Map();
  for (let number = start; number < stop; number += 1) {
    const [kind, other, touched] = state.steps[number];
    if (other !== tensor || !COUNTED[counted].includes(KINDS[kind])) continue;
    if (!runs.has(touched)) runs.set(touched, unpack(state.patterns[touched]));
    for (const [first, length, many] of runs.get(touched)) {
      for (let cell = first; cell < first + length; cell += 1) counts[cell] += many;
    }
  }
  return counts;
}

// What is shown at the present program and step.
export function tally(state) {
  const { first, count } = nameProgram(state, state.program);
  const here = count ? first + state.step : first;
  const next = count ? here + 1 : first;
  const steps = state.steps.length;
  const present = count ? nameStep(state, here) : { kind: null, tensor: null };
  const counts = Object.fromEntries(state.tensors.map(({ name }, tensor) => {
    const cells = countOf(state, tensor, 0, state.count === COUNTS[1] ? steps : next);
    const never = cells.filter((cell) => !cell).length;
    return [name, { least: cells.reduce((a, b) => Math.min(a, b)), most: cells.reduce((a, b) => Math.max(a, b)), never }];
  }));
  const number = state.tensors.findIndex(({ name }) => name === present.tensor);
  let again = 0;
  if (number >= 0 && COUNTED[state.tensors[number].counted].includes(present.kind)) {
    const before = countOf(state, number, 0, here);
    for (const [start, length] of unpack(state.patterns[present.touched])) {
      again += before.slice(start, start + length).filter(Boolean).length;
    }
  }
  return {
    kind: present.kind, tensor: present.tensor, elements: present.elements ?? 0, masked: present.masked ?? 0,
    outside: present.outside ?? 0, again, step: addUp(state, here, next), program: addUp(state, first, first + count),
    so_far: addUp(state, 0, next), all: addUp(state, 0, steps), counts,
  };
}

export const nameNumber = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");
const nameMany = (number, what) => `${nameNumber(number)} ${what}${number === 1 ? "" : "s"}`;
const VERBS = { load: "loads", store: "stores", atomic: "updates" };

function nameWho(state) {
  const { kernel, place } = nameProgram(state, state.program);
  return `Program ${state.program} of 0..${state.programs.length - 1}` +
    `${place.length > 1 ? ` at (${place.join(", ")})` : ""}${state.launches.length > 1 ? `, ${kernel}` : ""}`;
}

// What one step moved, without the elements that were counted before.
function nameDeed({ kind, tensor, elements, masked, outside }, { bytes_read, bytes_written, sectors, least_sectors }) {
  const parts = [`${VERBS[kind]} ${nameMany(elements, "element")} of ${tensor}`];
  if (kind === "atomic") parts[0] += " atomically";
  if (elements) {
    const than = sectors === least_sectors ? "the fewest possible" : `${nameNumber(least_sectors)} could hold them`;
    parts.push(`${nameNumber(Math.max(bytes_read, bytes_written))} bytes in ${nameMany(sectors, "sector")} (${than})`);
  }
  if (masked) parts.push(`${nameMany(masked, "lane")} masked`);
  if (outside) parts.push(`${nameMany(outside, "lane")} outside of the tensor`);
  return parts;
}

export function summarise(state, found = tally(state)) {
  const { count } = nameProgram(state, state.program);
  if (!count) return `${nameWho(state)}: neither loads nor stores.`;
  const who = `${nameWho(state)}, step ${state.step} of 0..${count - 1}`;
  if (found.kind === "dot") return `${who}: multiplies tiles, ${nameNumber(found.step.flops)} FLOPs.`;
  const parts = nameDeed(found, found.step);
  if (found.again) {
    const { counted } = state.tensors.find(({ name }) => name === found.tensor);
    const many = found.again === found.elements ? "all" : nameNumber(found.again);
    parts.splice(1, 0, `${many} of them ${counted} before`);
  }
  return `${who}: ${parts.join(", ")}.`;
}

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const [WIDE, HIGH, SMALLEST, LARGEST] = [290, 330, 3, 20]; // of a picture, and of its cells
const NUMBERED = 14; // a cell as large as this has room for its number
const LEVELS = [1, 2, 3, 5, 9]; // a shade for each: once, twice, 3 or 4 times, 5 to 8, more
const PATTERNS = { load: "M0 6L6 0", store: "M0 3H6", atomic: "M0 0L6 6M0 6L6 0", masked: "M2 3h2M3 2v2" };

const VALUE = '<span aria-hidden="true"></span>';
const PAGE = `
<div class="controls">
  <label>Program <input name="program" type="range" min="0">${VALUE}</label>
  <label>Step <input name="step" type="range" min="0">${VALUE}</label>
  <span><button type="button" class="back">Back</button> <button type="button" class="on">Next</button></span>
  <label>Count <select name="count">${COUNTS.map((name) => `<option>${name}</option>`).join("")}</select></label>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<pre class="source"></pre>
<div class="picture">
  <div class="legend"></div>
  <div class="grids"></div>
</div>
<div class="tables sums"></div>
<div class="tables steps" hidden></div>
<p class="hint">A cell is an element. Its number and its shade say how many times it was read, or written where nothing
  reads it. A sector is 32 bytes, the least that a GPU moves: where a step needs more of them than could hold its
  elements, its addresses lie apart.</p>`;

const DRAWN = ["svg", "g", "path", "rect", "text", "defs", "pattern"];

function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const makePatterns = (prefix) => make("defs", {}, ...Object.entries(PATTERNS).map(([kind, d]) =>
  make("pattern", { id: `${prefix}-${kind}`, class: kind, width: 6, height: 6, patternUnits: "userSpaceOnUse" },
    make("rect", { width: 6, height: 6 }), make("path", { d }))));

// Cells in ascending order as rectangles [row, column, rows, columns]: neighbours in a row, then equal rows below.
export function rectangles(cells, columns) {
  const found = [];
  const open = new Map(); // by column and length: the last rectangle there
  for (let at = 0; at < cells.length;) {
    let stop = at + 1;
    while (stop < cells.length && cells[stop] === cells[stop - 1] + 1 && cells[stop] % columns) stop += 1;
    const [row, column, length] = [Math.floor(cells[at] / columns), cells[at] % columns, stop - at];
    const above = open.get(column * 1000 + length);
    if (above && above[0] + above[2] === row) above[2] += 1;
    else {
      found.push([row, column, 1, length]);
      open.set(column * 1000 + length, found.at(-1));
    }
    at = stop;
  }
  return found;
}

const outline = (cells, columns, size) => rectangles(cells, columns).map(([row, column, high, wide]) =>
  `M${column * size} ${row * size}h${wide * size}v${high * size}h${-wide * size}z`).join("");

const cellsOf = (pattern) => unpack(pattern).flatMap(([start, length]) => times(length, (at) => start + at));
const levelOf = (count) => LEVELS.filter((least) => count >= least).length;
const sizeOf = ({ rows, columns }) =>
  Math.max(SMALLEST, Math.min(LARGEST, Math.floor(WIDE / columns), Math.floor(HIGH / rows)));

function nameCounts({ counted, shape }, { least, most, never }) {
  const range = least === most ? `${most}` : `${least} to ${most}`;
  const missing = never ? `, ${nameNumber(never)} of ${nameNumber(product(shape))} never` : "";
  return `${counted} ${range} ${range === "1" ? "time" : "times"} each${missing}`;
}

// Thin lines between cells, thick ones between the leading axes of a stack of matrices.
function drawLines({ rows, columns, shape }, size) {
  const [width, height] = [columns * size, rows * size];
  const across = times(rows + 1, (row) => `M0 ${row * size}H${width}`).join("");
  const down = times(columns + 1, (column) => `M${column * size} 0V${height}`).join("");
  const thin = size < 6 ? `M0 0H${width}V${height}H0z` : across + down;
  const each = shape.length > 2 ? shape.at(-2) : rows;
  const thick = times(Math.max(0, Math.ceil(rows / each) - 1), (block) => `M0 ${(block + 1) * each * size}H${width}`);
  return [make("path", { class: "lines", d: thin }), make("path", { class: "blocks", d: thick.join("") })];
}

function drawNumbers(counts, columns, size) {
  if (size < NUMBERED) return [];
  return counts.flatMap((count, cell) => (count ? [make("text", {
    x: (cell % columns + 0.5) * size, y: (Math.floor(cell / columns) + 0.5) * size + 3.5 }, count)] : []));
}

// A tensor as cells: how often each was counted, and over that what the present step touches and what a mask held.
function drawTensor(state, number, present, found, counts, prefix) {
  const tensor = state.tensors[number];
  const { name, shape, dtype, rows, columns } = tensor;
  const size = sizeOf(tensor);
  const mine = present?.tensor === name;
  const path = (kind, cells, more) => make("path", { class: kind, d: outline(cells, columns, size), ...more });
  const filled = (kind) => ({ fill: `url(#${prefix}-${kind})` });
  const shades = LEVELS.map((_, level) =>
    path(`level-${level + 1}`, counts.flatMap((count, cell) => (levelOf(count) === level + 1 ? [cell] : []))));
  const now = mine ?
    path(`now ${present.kind}`, cellsOf(state.patterns[present.touched]), filled(present.kind)) : "";
  const held = mine ? path("masked", cellsOf(state.patterns[present.held]), filled("masked")) : "";
  const deed = mine ? `${nameDeed(found, found.step).join(", ")}; ` : "";
  const said = nameCounts(tensor, found.counts[name]);
  const [width, height] = [columns * size, rows * size];
  return make("div", { class: mine ? "grid mine" : "grid" },
    make("b", {}, name), make("span", {}, `${shape.join(" × ") || "scalar"}, ${dtype}`),
    make("svg", { role: "img", "aria-label": `${name}, ${deed}${said}`, width: width + 4, height: height + 4,
      viewBox: `-2 -2 ${width + 4} ${height + 4}` },
    makePatterns(prefix), ...shades, now, ...drawLines(tensor, size), held, ...drawNumbers(counts, columns, size)),
    make("span", {}, said));
}

function drawLegend(state, prefix) {
  const swatch = (kind, more = {}) => make("path", { class: kind, d: "M2 2h20v12h-20z", ...more });
  const present = new Set(state.steps.map(([kind]) => KINDS[kind]));
  const items = Object.entries({ load: "loaded now", store: "stored now", atomic: "updated now" })
    .filter(([kind]) => present.has(kind))
    .map(([kind, text]) => [swatch(`now ${kind}`, { fill: `url(#${prefix}-${kind})` }), text]);
  if (state.steps.some((step) => state.patterns[step[AT.held]])) {
    items.push([swatch("masked", { fill: `url(#${prefix}-masked)` }), "what the mask held back"]);
  }
  const names = ["once", "twice", "3 or 4 times", "5 to 8", "more often"];
  names.forEach((text, level) => items.push([swatch(`level-${level + 1}`), text]));
  return items.map(([mark, text]) => make("span", {}, make("svg", { "aria-hidden": "true", width: 24, height: 16 },
    ...(mark.hasAttribute("fill") ? [makePatterns(prefix)] : []), mark), text));
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function makeSums({ reference }, found) {
  const row = (title, { bytes_read, bytes_written, flops, sectors, least_sectors }) => {
    const bytes = bytes_read + bytes_written;
    return [title, nameNumber(bytes_read), nameNumber(bytes_written), nameNumber(flops),
      bytes ? (flops / bytes).toFixed(2) : "0", sectors ? (sectors / least_sectors).toFixed(2) : "-"];
  };
  return makeTable("Traffic", ["", "Bytes read", "Bytes written", "FLOPs", "FLOPs a byte", "Sectors / fewest"], [
    row("This step", found.step), row("This program", found.program), row("So far", found.so_far),
    row("All programs", found.all), row(reference.title, reference)]);
}

function makeSteps(state, found) {
  const { first, count } = nameProgram(state, state.program);
  const rows = times(count, (number) => {
    const { kind, tensor, elements, masked, bytes, flops, sectors, outside, source } = nameStep(state, first + number);
    return [number, kind, tensor ?? "-", ...[elements, masked, outside, bytes, sectors, flops].map(nameNumber),
      state.sources[source]];
  });
  const tensors = state.tensors.map((tensor) => {
    const { least, most, never } = found.counts[tensor.name];
    return [tensor.name, tensor.shape.join(" × "), tensor.dtype, tensor.counted, least, most, never];
  });
  return [
    makeTable(`Steps of program ${state.program}`, ["Step", "What", "Tensor", "Elements", "Masked", "Outside", "Bytes",
      "Sectors", "FLOPs", "Line of the kernel"], rows),
    makeTable(`Tensors, ${state.count}`, ["Tensor", "Shape", "Dtype", "Counted", "Least", "Most", "Never"], tensors)];
}

function render({ model, el }) {
  const root = make("div", { class: "memory-tracer" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const [program, step, count, asTable] =
    ["[name=program]", "[name=step]", "[name=count]", ".as-table"].map(find);
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  const prefix = `memory-${Math.random().toString(36).slice(2)}`; // ids belong to the page, which may hold two of us
  let frame = 0;

  const readState = () => fit(Object.fromEntries(TRAITS.map((name) => [name, model.get(name)])));

  function setRange(field, most, value, text) {
    field.max = most;
    field.value = value;
    field.setAttribute("aria-valuetext", text);
    field.nextElementSibling.textContent = value;
  }

  function drawGrids(state, found, present) {
    const [here, steps] = [nameProgram(state, state.program).first + (present ? state.step + 1 : 0), state.steps.length];
    const stop = state.count === COUNTS[1] ? steps : here;
    find(".legend").replaceChildren(...drawLegend(state, `${prefix}-legend`));
    find(".grids").replaceChildren(...state.tensors.map((_, number) =>
      drawTensor(state, number, present, found, countOf(state, number, 0, stop), `${prefix}-${number}`)));
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const found = tally(state);
    const { first, count: steps, place } = nameProgram(state, state.program);
    const present = steps ? nameStep(state, first + state.step) : null;
    setRange(program, state.programs.length - 1, state.program,
      `program ${state.program}${place.length > 1 ? ` at (${place.join(", ")})` : ""}`);
    setRange(step, Math.max(0, steps - 1), state.step, steps ? `step ${state.step}, ${present.kind}` : "no step");
    count.value = state.count;
    const sentence = summarise(state, found);
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    find(".source").textContent = (present && state.sources[present.source]) || "\u00a0";
    find(".picture").hidden = asTable.checked;
    find(".steps").hidden = !asTable.checked;
    find(".sums").replaceChildren(makeSums(state, found));
    if (asTable.checked) find(".steps").replaceChildren(...makeSteps(state, found));
    else drawGrids(state, found, present);
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  // A program with fewer steps than the one before: its last step is as far as one can be.
  function setProgram(value) {
    const { program: number, step: at } = fit({ ...readState(), program: value });
    update({ program: number, step: at });
  }

  program.addEventListener("input", () => setProgram(Number(program.value)));
  step.addEventListener("input", () => update({ step: Number(step.value) }));
  count.addEventListener("change", () => update({ count: count.value }));
  find(".back").addEventListener("click", () => update(move(readState(), -1)));
  find(".on").addEventListener("click", () => update(move(readState(), 1)));
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
