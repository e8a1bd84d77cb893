// Tile map: how the tiles of a grouped product get onto multiprocessors, in which order, and where the time goes.
// The first half is arithmetic without a page, the twin of tile_map.py and schedule.py; a test compares them.

const TRAITS = ["presets", "preset", "block_m", "tiles_n", "programs", "scheduler", "order", "group_m", "num_xcds",
  "launch_cost", "step", "refused"];
const NAMES = { loop: "Loop over experts", padded: "Padded batch", grouped: "Grouped, one program a tile",
  persistent: "Grouped, persistent programs" };
const ORDERED = ["grouped", "persistent"]; // the schedulers that follow an order
const IN_GROUPS = ["grouped", "xcd_remapped"]; // the orders that take several row tiles at a time
const [BLOCKS, CACHES, LAUNCH_COSTS] = [[16, 32, 64, 128], [1, 2, 4, 8], [0, 0.25, 0.5, 1, 2, 4, 8]];
const [MOST_COLUMNS, MOST_PROGRAMS, MOST_GROUP, MOST_TILES] = [16, 132, 16, 8192];

const times = (length, make) => Array.from({ length }, (_, number) => make(number));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const divide = (number, by) => [Math.floor(number / by), number % by];

// item -> [tile_m, tile_n], as in kernels/tile_order.py.
export const ORDERS = {
  row_major: (item, tilesM, tilesN) => divide(item, tilesN),
  column_major: (item, tilesM) => divide(item, tilesM).reverse(),
  grouped(item, tilesM, tilesN, groupM) {
    const [group, within] = divide(item, groupM * tilesN);
    const [tileN, tileM] = divide(within, Math.min(tilesM - group * groupM, groupM));
    return [group * groupM + tileM, tileN];
  },
  xcd_remapped(item, tilesM, tilesN, groupM, numXcds) {
    const [turn, xcd] = divide(item, numXcds);
    const [least, more] = divide(tilesM * tilesN, numXcds);
    return ORDERS.grouped(xcd * least + Math.min(xcd, more) + turn, tilesM, tilesN, groupM);
  },
  broken_column_major: (item, tilesM, tilesN) => [item % tilesN, Math.floor(item / tilesM)],
};

// The row tiles of all experts; padded: every expert has as many as the busiest, some with no row in use.
export function cut(load, block, padded) {
  const most = Math.max(...load);
  return load.flatMap((rows, expert) => times(Math.ceil((padded ? most : rows) / block), (tile) =>
    ({ expert, rows: Math.min(block, Math.max(0, rows - tile * block)) })));
}

// How many tiles the product has, without making them.
export function countTiles({ presets, preset, block_m, tiles_n, scheduler }) {
  const each = presets[preset].map((rows) => Math.ceil(rows / block_m));
  return tiles_n * (scheduler === "padded" ? each.length * Math.max(...each) : sum(each));
}

// The items of each launch that have a tile, as [item, tile_m, tile_n].
function batchesOf(state, rowTiles) {
  const { scheduler, tiles_n, group_m, num_xcds } = state;
  const tilesM = rowTiles.length;
  const place = ORDERS[ORDERED.includes(scheduler) ? state.order : "row_major"];
  const items = times(tilesM * tiles_n, (item) => [item, ...place(item, tilesM, tiles_n, group_m, num_xcds)])
    .filter(([, tileM, tileN]) => tileM < tilesM && tileN < tiles_n);
  if (scheduler !== "loop") return tilesM ? [items] : [];
  const experts = [...new Set(rowTiles.map(({ expert }) => expert))];
  return experts.map((expert) => items.filter(([, tileM]) => rowTiles[tileM].expert === expert));
}

// Row tiles, launches and visits in the order of their items; the rules are those of moe_lab.schedule.
export function schedule(state) {
  const { block_m, programs, scheduler, launch_cost } = state;
  const rowTiles = cut(state.presets[state.preset], block_m, scheduler === "padded");
  const [launches, visits] = [[], []];
  let start = 0;
  for (const batch of batchesOf(state, rowTiles)) {
    const ready = start + launch_cost;
    const done = new Array(programs).fill(0);
    batch.forEach(([item, tile_m, tile_n], turn) => {
      const multiprocessor = (scheduler === "persistent" ? item : turn) % programs;
      const wave = done[multiprocessor]++;
      visits.push({ item, tile_m, tile_n, ...rowTiles[tile_m], multiprocessor, launch: launches.length, wave,
        start: ready + wave, end: ready + (wave + 1) });
    });
    const waves = Math.max(...done);
    launches.push({ start, ready, waves, end: ready + waves });
    start = ready + waves;
  }
  const found = { rowTiles, launches, visits, makespan: start };
  return { ...found, moments: momentsOf(found), ...countsOf(state, found) };
}

// The stretches of time in which nothing changes, each with the visits that go on in it.
function momentsOf({ launches, visits, makespan }) {
  const moments = launches.flatMap(({ start, ready, waves }, launch) => [
    ...(ready > start ? [{ kind: "launch", launch, wave: 0, time: start, until: ready, running: [] }] : []),
    ...times(waves, (wave) =>
      ({ kind: "wave", launch, wave, time: ready + wave, until: ready + (wave + 1), running: [] }))]);
  const first = launches.map((_, launch) => moments.findIndex((one) => one.kind === "wave" && one.launch === launch));
  for (const visit of visits) moments[first[visit.launch] + visit.wave].running.push(visit);
  return [...moments, { kind: "end", launch: launches.length, wave: 0, time: makespan, until: makespan, running: [] }];
}

// Items by tile, row by row, and what the whole schedule adds up to.
function countsOf({ block_m, tiles_n, programs, launch_cost }, { rowTiles, launches, visits }) {
  const written = times(rowTiles.length * tiles_n, () => []);
  for (const visit of visits) written[visit.tile_m * tiles_n + visit.tile_n].push(visit);
  const computed = visits.length * block_m;
  return {
    written, never: written.filter((some) => !some.length).length,
    repeated: written.filter((some) => some.length > 1).length, rows_computed: computed,
    rows_empty: computed - sum(visits.map(({ rows }) => rows)), launching: programs * launches.length * launch_cost,
    tail: sum(launches.map(({ waves }) => programs * waves)) - visits.length,
  };
}

// Different panels of x and of w that running tiles read, each of the caches by itself.
export function panelsOf(running, caches) {
  const count = (name) => new Set(running.map((visit) => `${visit.multiprocessor % caches} ${name(visit)}`)).size;
  return [count(({ tile_m }) => tile_m), count(({ expert, tile_n }) => `${expert} ${tile_n}`)];
}

// What is counted of the schedule, and of the present step.
export function tally(state, found = schedule(state)) {
  const last_step = found.moments.length - 1;
  const now = found.moments[Math.min(state.step, last_step)];
  const [x_panels, w_panels] = panelsOf(now.running, state.num_xcds);
  const { never, repeated, makespan, tail, launching, rows_computed, rows_empty } = found;
  return {
    tiles: found.written.length, never, repeated, makespan, tail, rows_computed, rows_empty, launching,
    visits: found.visits.length, launches: found.launches.length,
    panels: sum(found.moments.map(({ running }) => sum(panelsOf(running, state.num_xcds)))), last_step,
    kind: now.kind, launch: now.launch, wave: now.wave,
    waves: now.kind === "wave" ? found.launches[now.launch].waves : 0, running: now.running.length, x_panels, w_panels,
  };
}

export function plain(value) {
  const [whole, rest] = String(value).split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest ? `.${rest}` : "");
}
export const perCent = (part, whole) => (whole ? Math.floor((100 * part) / whole + 0.5) : 0);
const many = (number, what) => `${plain(number)} ${what}${number === 1 ? "" : what.endsWith("ch") ? "es" : "s"}`;
const words = (name) => name.replaceAll("_", " ");

function sayFaults({ never, repeated }) {
  const faults = [[never, "never written"], [repeated, "written more than once"]].filter(([number]) => number)
    .map(([number, deed]) => `${many(number, "tile")} ${number === 1 ? "is" : "are"} ${deed}`);
  return faults.length ? ` Wrong: ${faults.join(" and ")}.` : "";
}

// Where the time of all multiprocessors goes, in whole per cent.
function sharesOf({ programs }, { visits, launching, tail, makespan }) {
  return Object.entries({ busy: visits, launching, tail })
    .map(([name, part]) => [name, perCent(part, programs * makespan)]);
}

// "launch 1 of 3, wave 1 of 2", "wave 1 of 2" where there is one launch, "launch 1 of 3" while it starts
function nameMoment({ kind, launch, launches, wave, waves }) {
  if (kind === "end") return "the end";
  const parts = [];
  if (kind === "launch" || launches > 1) parts.push(`launch ${launch + 1} of ${launches}`);
  if (kind === "wave") parts.push(`wave ${wave + 1} of ${waves}`);
  return parts.join(", ");
}

// The sentence in two parts, so that a screen reader need not hear the first again at each step.
export function sayParts(state, known = null) {
  const tiles = countTiles(state);
  const load = state.presets[state.preset];
  const order = ORDERED.includes(state.scheduler) ? `, ${words(state.order)} order` : "";
  const what = `${NAMES[state.scheduler]}${order}: ${many(sum(load), "row")} of ${many(load.length, "expert")} ` +
    `are ${many(tiles, "tile")}`;
  if (!tiles) return [`${what}, and nothing is launched.`, ""];
  if (tiles > MOST_TILES) return [`${what}, and at most ${plain(MOST_TILES)} are drawn.`, ""];
  const counts = known ?? tally(state);
  const where = `in ${many(counts.launches, "launch")} on ${many(state.programs, "multiprocessor")}`;
  const spent = sharesOf(state, counts).map(([name, share]) => `${name} ${share} %`).join(", ");
  const empty = perCent(counts.rows_empty, counts.rows_computed);
  return [`${what}, ${where}.${sayFaults(counts)} Makespan ${many(counts.makespan, "tile time")}: ${spent}; ` +
    `padding is ${empty} % of the computed rows.`, ` ${sayStep(state, counts)}`];
}

function sayStep({ step, num_xcds }, counts) {
  const { kind, running, x_panels, w_panels, last_step } = counts;
  const where = `Step ${Math.min(step, last_step)} of 0..${last_step}, ${nameMoment(counts)}`;
  if (kind === "end") return `${where}.`;
  if (kind === "launch") return `${where}: nothing runs yet.`;
  const caches = num_xcds > 1 ? `, in each of ${num_xcds} caches by itself` : "";
  const run = running === 1 ? "1 tile runs and reads" : `${running} tiles run and read`;
  return `${where}: ${run} ${many(x_panels, "row panel")} of x and ${many(w_panels, "column panel")} of w${caches} ` +
    `(${2 * running} without sharing).`;
}

export const summarise = (state, counts = null) => sayParts(state, counts).join("");

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const [SLOWEST_MS, FASTEST_MS, WHOLE_MS] = [600, 60, 15_000]; // a step while it plays, and all of them about
const [MAP_WIDE, MAP_HIGH, TALLEST, WIDEST] = [336, 340, 24, 60]; // of the tiles, and of one of them
const [CHART_WIDE, CHART_HIGH, SIDE, TOP] = [370, 336, 58, 22]; // of the bars, and the room for names before them
const NUMBERED = 11; // a tile as high as this has room for its number
const PATTERNS = { done: "M0 3H8M0 7H8", running: "M0 8L8 0", padding: "M0 0L8 8M-2 6L2 10M6 -2L10 2",
  never: "M0 0L8 8M0 8L8 0", repeated: "M2 2h2v2h-2zM6 6h2v2h-2z", launch: "M4 0V8M0 4H8", tail: "M3 4h2" };
const STATES = { done: "done", running: "running now", padding: "padding", launch: "launch", tail: "out of work",
  never: "never written", repeated: "written more than once" };

const VALUE = '<span aria-hidden="true"></span>'; // the number beside a slider, which says its own aloud
const option = (value, text = value) => `<option value="${value}">${text}</option>`;
const select = (name, values, text) =>
  `<select name="${name}">${values.map((value) => option(value, text?.(value))).join("")}</select>`;
const slider = (name, most) => `<input name="${name}" type="range" min="1" max="${most}">${VALUE}`;
const PAGE = `
<div class="controls">
  <label>Load <select name="preset"></select></label>
  <label>Scheduler ${select("scheduler", Object.keys(NAMES), (name) => NAMES[name])}</label>
  <label>Rows a tile ${select("block_m", BLOCKS)}</label>
  <label>Column tiles ${slider("tiles_n", MOST_COLUMNS)}</label>
  <label>Multiprocessors ${slider("programs", MOST_PROGRAMS)}</label>
  <label>Launch cost ${select("launch_cost", LAUNCH_COSTS)}</label>
</div>
<div class="controls">
  <label>Order ${select("order", Object.keys(ORDERS), words)}</label>
  <label>Row tiles a group ${slider("group_m", MOST_GROUP)}</label>
  <label>Caches (chiplets) ${select("num_xcds", CACHES)}</label>
  <span class="applies"></span>
</div>
<div class="controls">
  <label>Step <input name="step" class="wide" type="range" min="0">${VALUE}</label>
  <button type="button" class="play">Play</button>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<p class="summary" aria-live="polite"><span></span><span></span></p>
<p class="refused" role="alert"></p>
<div class="picture">
  <div class="legend"></div>
  <div class="pictures"></div>
</div>
<dl class="figures"></dl>
<div class="tables" hidden></div>
<p class="hint">A tile takes one unit of time, whatever its rows hold; a launch costs what is chosen, and waits for
  the end of the one before. Nothing here knows of memory: what an order shares is counted as panels, the rows of x
  or the columns of one expert's w that a tile reads. Tiles that run together and need the same panel read it once, as
  long as they work under the same cache.</p>`;

const DRAWN = ["svg", "g", "path", "rect", "text", "defs", "pattern"];

function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const makePatterns = (prefix) => make("defs", {}, ...Object.entries(PATTERNS).map(([kind, d]) =>
  make("pattern", { id: `${prefix}-${kind}`, class: kind, width: 8, height: 8, patternUnits: "userSpaceOnUse" },
    make("rect", { width: 8, height: 8 }), make("path", { d }))));

const short = (number) => Number(number.toFixed(2));
const box = ([x, y, wide, high]) => `M${short(x)} ${short(y)}h${short(wide)}v${short(high)}h${short(-wide)}z`;
const area = (kind, boxes, prefix) =>
  make("path", { class: `area ${kind}`, fill: `url(#${prefix}-${kind})`, d: boxes.map(box).join("") });
const fine = (most, room) => short(Math.min(most, room / 8)); // a line that leaves something of what it surrounds
const write = (kind, x, y, text) => make("text", { class: kind, x: short(x), y: short(y) }, text);

// What has become of a visit at this moment.
const stateOf = ({ launch, wave }, now) => {
  if (now.kind === "wave" && launch === now.launch && wave === now.wave) return "running";
  return launch < now.launch || (launch === now.launch && now.kind === "wave" && wave < now.wave) ? "done" : "waiting";
};

// And of a tile: one that several items come to is running if one of them is.
export function stateOfTile(visits, now) {
  const states = visits.map((visit) => stateOf(visit, now));
  return ["running", "done", "waiting"].find((state) => states.includes(state)) ?? "never";
}

function sizesOf({ tiles_n }, { rowTiles }) {
  const high = Math.min(TALLEST, MAP_HIGH / Math.max(1, rowTiles.length));
  return [Math.min(WIDEST, MAP_WIDE / tiles_n), high];
}

// The first and the number of row tiles of each expert that has some.
function expertsOf(rowTiles) {
  const experts = new Map();
  rowTiles.forEach(({ expert }, tile) => experts.set(expert, [experts.get(expert)?.[0] ?? tile,
    (experts.get(expert)?.[1] ?? 0) + 1]));
  return [...experts];
}

// The name of an expert beside its row tiles, and its rows where there is room for a second line.
function nameRows(load, [expert, [first, tiles]], high) {
  const [y, room] = [TOP + (first + tiles / 2) * high + 4, tiles * high];
  const two = room >= 26 ? 6.5 : 0;
  return room < 11 ? [] : [write("end", SIDE - 9, y - two, `expert ${expert}`),
    ...(two ? [write("end", SIDE - 9, y + two, many(load[expert], "row"))] : [])];
}

function numberTile(visits, [x, y, wide, high]) {
  const text = String(nameTile(visits, wide));
  return write(wide < 24 && text.length > 2 ? "middle tight" : "middle", x + wide / 2, y + high / 2 + 3.5, text);
}

function nameTile(visits, wide) {
  if (!visits.length) return wide >= 36 ? "never" : "\u00d7";
  const numbers = visits.map(({ item }) => item);
  const text = numbers.slice(0, 2).join(" ") + (numbers.length > 2 ? " \u2026" : "");
  return text.length * 6 + 4 <= wide ? text : String(numbers[0]).length * 6 + 2 <= wide ? numbers[0] : "";
}

const nameExperts = (experts) => (experts.length === 1 ? `expert ${experts[0]}` :
  `experts ${experts.slice(0, -1).join(", ")} and ${experts.at(-1)}`);

// The left picture: row tiles from the top down, column tiles to the right.
function drawMap(state, found, now, prefix) {
  const { block_m, tiles_n } = state;
  const { rowTiles, written } = found;
  const [wide, high] = sizesOf(state, found);
  const place = (tile) => [SIDE + (tile % tiles_n) * wide, TOP + Math.floor(tile / tiles_n) * high, wide, high];
  const [right, bottom] = [SIDE + tiles_n * wide, TOP + rowTiles.length * high];
  const by = { done: [], running: [], waiting: [], never: [] };
  written.forEach((visits, tile) => by[stateOfTile(visits, now)].push(place(tile)));
  const repeated = written.flatMap((visits, tile) => (visits.length > 1 ? [place(tile)] : []));
  const padding = rowTiles.flatMap(({ rows }, tile) => (rows < block_m ?
    [[SIDE, TOP + (tile + rows / block_m) * high, right - SIDE, high * (1 - rows / block_m)]] : []));
  const across = high >= 4 ? rowTiles.length + 1 : 0;
  const lines = [...times(across, (tile) => `M${SIDE} ${short(TOP + tile * high)}H${right}`),
    ...times(tiles_n + 1, (tile) => `M${short(SIDE + tile * wide)} ${TOP}V${short(bottom)}`)];
  const experts = expertsOf(rowTiles);
  const blocks = [...experts.map(([, [first]]) => TOP + first * high), bottom]
    .map((y) => `M${SIDE - 6} ${short(y)}H${right}`);
  const load = state.presets[state.preset];
  const numbers = high < NUMBERED ? [] : written.map((visits, tile) => numberTile(visits, place(tile)));
  const label = `Tiles, ${by.done.length} done, ${by.running.length} running, ${by.waiting.length} not yet` +
    (by.never.length ? `, ${by.never.length} never written` : "") +
    (repeated.length ? `, ${repeated.length} written more than once` : "");
  const absent = load.flatMap((_, expert) => (experts.some(([other]) => other === expert) ? [] : [expert]));
  return make("figure", { class: "map" },
    make("figcaption", {}, "Tiles of the output, rows by expert"),
    make("svg", { role: "img", "aria-label": label, viewBox: `0 0 ${right + 4} ${bottom + 4}`, width: right + 4,
      height: bottom + 4 }, makePatterns(prefix),
    ...["done", "running", "never"].map((kind) => area(kind, by[kind], prefix)), area("repeated", repeated, prefix),
    area("padding", padding, prefix), make("path", { class: "lines", d: lines.join("") }),
    make("path", { class: "blocks", d: blocks.join(""), "stroke-width": fine(1.5, (bottom - TOP) / experts.length) }),
    make("path", { class: "now", d: by.running.map(box).join(""), "stroke-width": fine(2, high) }),
    write("middle", (SIDE + right) / 2, TOP - 8, tiles_n === 1 ? "all columns" : "column tiles"),
    ...experts.flatMap((one) => nameRows(load, one, high)), ...numbers),
    ...(absent.length ? [make("p", {}, `Without rows: ${nameExperts(absent)}.`)] : []));
}

// Ticks of time: 1, 2 or 5 times a power of ten, at most nine of them.
function ticksOf(makespan) {
  const steps = times(18, (power) => [1, 2, 5][power % 3] * 10 ** Math.floor(power / 3));
  const step = steps.find((one) => makespan / one <= 8) ?? makespan;
  return times(Math.floor(makespan / step) + 1, (tick) => tick * step);
}

// Where each multiprocessor has no tile left while its launch goes on, as boxes of the chart.
function tailsOf(state, { launches, visits }, place) {
  const last = launches.map(() => new Array(state.programs).fill(0));
  for (const { launch, multiprocessor, wave } of visits) {
    last[launch][multiprocessor] = Math.max(last[launch][multiprocessor], wave + 1);
  }
  return launches.flatMap(({ ready, end }, launch) => last[launch].flatMap((waves, multiprocessor) =>
    (ready + waves < end ? [place(multiprocessor, ready + waves, end)] : [])));
}

function nameMultiprocessors(programs, high) {
  const every = Math.ceil(11 / high);
  return times(Math.ceil(programs / every), (row) =>
    write("end", SIDE - 6, TOP + (row * every + 0.5) * high + 4, row ? row * every : "SM 0"));
}

// The right picture: multiprocessors from the top down, time to the right.
function drawChart(state, found, counts, now, prefix) {
  const { programs, block_m } = state;
  const { visits, launches, makespan } = found;
  const [scale, high] = [CHART_WIDE / Math.max(1, makespan), Math.min(TALLEST, CHART_HIGH / programs)];
  const [right, bottom] = [SIDE + CHART_WIDE, TOP + programs * high];
  const place = (row, start, end) => [SIDE + start * scale, TOP + row * high, (end - start) * scale, high];
  const placeOf = ({ multiprocessor, start, end }) => place(multiprocessor, start, end);
  const by = { done: [], running: [], waiting: [] };
  for (const visit of visits) by[stateOf(visit, now)].push(placeOf(visit));
  const padding = visits.filter(({ rows }) => rows < block_m).map((visit) => {
    const [x, y, wide] = placeOf(visit);
    const used = visit.rows / block_m;
    return [x, y + used * high, wide, (1 - used) * high];
  });
  const gaps = launches.filter(({ start, ready }) => ready > start)
    .map(({ start, ready }) => [SIDE + start * scale, TOP, (ready - start) * scale, programs * high]);
  const bars = scale < 3 || high < 3 ? [] : visits.map((visit) => box(placeOf(visit)));
  const numbers = high < NUMBERED ? [] : visits.flatMap((visit) => {
    const [x, y, wide] = placeOf(visit);
    return String(visit.item).length * 6 + 2 > wide ? [] :
      [write("middle", x + wide / 2, y + high / 2 + 3.5, visit.item)];
  });
  const ticks = ticksOf(makespan);
  const label = `Multiprocessors over ${many(makespan, "tile time")}, ` +
    sharesOf(state, counts).map(([name, share]) => `${name} ${share} %`).join(", ");
  return make("figure", { class: "chart" },
    make("figcaption", {}, "Multiprocessors (SM) over time, in tile times"),
    make("svg", { role: "img", "aria-label": label, viewBox: `0 0 ${right + 12} ${bottom + 22}`, width: right + 12,
      height: bottom + 22 }, makePatterns(prefix),
    area("launch", gaps, prefix), area("tail", tailsOf(state, found, place), prefix),
    ...["done", "running"].map((kind) => area(kind, by[kind], prefix)), area("padding", padding, prefix),
    make("path", { class: "lines", d: bars.join("") }),
    make("path", { class: "blocks", "stroke-width": 1.5, d: `M${SIDE} ${TOP}V${short(bottom)}H${right}` }),
    make("path", { class: "now", "stroke-width": 2,
      d: box([SIDE + now.time * scale, TOP - 4, (now.until - now.time) * scale, bottom - TOP + 8]) }),
    ...ticks.map((tick) => write("middle", SIDE + tick * scale, bottom + 16, plain(tick))),
    ...nameMultiprocessors(programs, high), ...numbers));
}

function drawLegend({ never, repeated, rows_empty, launching, tail }, prefix) {
  const there = { done: 1, running: 1, padding: rows_empty, launch: launching, tail, never, repeated };
  return Object.entries(STATES).filter(([kind]) => there[kind]).map(([kind, text]) => make("span", {},
    make("svg", { "aria-hidden": "true", width: 26, height: 16 }, makePatterns(`${prefix}-${kind}`),
      area(kind, [[2, 2, 22, 12]], `${prefix}-${kind}`)), text));
}

function makeFigures(state, counts) {
  const { tiles, visits, launches, makespan, tail, rows_computed, rows_empty, panels, running } = counts;
  const time = state.programs * makespan;
  const share = (part, whole) => `${perCent(part, whole)} %`;
  const rows = [["Tiles", plain(tiles)], ["Launches", plain(launches)], ["Makespan", plain(makespan)],
    ["Busy", share(visits, time)], ["Launching", share(counts.launching, time)],
    ["Tail", `${share(tail, time)} (${plain(tail)} tile times)`], ["Padding", share(rows_empty, rows_computed)],
    ["Never written", plain(counts.never)], ["Written more than once", plain(counts.repeated)],
    ["Running now", plain(running)], ["They read", `${counts.x_panels} of x, ${counts.w_panels} of w`],
    ["Panels in all waves", `${plain(panels)} of ${plain(2 * visits)} without sharing`]];
  return rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function makeTables(state, found, now) {
  const { rowTiles, written, moments, visits } = found;
  const { tiles_n, programs, num_xcds } = state;
  const say = (some) => `${some.map(({ item }) => item).join(", ")} ${stateOfTile(some, now)}`.trim();
  const tiles = rowTiles.map(({ expert, rows }, tile) => [tile, expert, rows,
    ...written.slice(tile * tiles_n, (tile + 1) * tiles_n).map(say)]);
  const own = times(programs, () => []);
  for (const visit of visits) own[visit.multiprocessor].push(visit.item);
  const steps = moments.map(({ kind, launch, wave, time, running }, step) => [step, plain(time),
    kind === "end" ? kind : `launch ${launch + 1}${kind === "wave" ? `, wave ${wave + 1}` : ""}`, running.length,
    ...panelsOf(running, num_xcds)]);
  return [makeTable("Tiles by work item", ["Row tile", "Expert", "Rows in use",
    ...times(tiles_n, (column) => `Column ${column}`)], tiles),
  makeTable("Steps", ["Step", "Time", "What", "Tiles", "Panels of x", "Panels of w"], steps),
  makeTable("Multiprocessors", ["Multiprocessor", "Tiles", "Work items"],
    own.map((items, number) => [number, items.length, items.join(", ")]))];
}

// Which of the controls in the second row do something.
function nameApplying({ scheduler, order, num_xcds, programs }) {
  if (!ORDERED.includes(scheduler)) return "The order is for the grouped schedulers; these tiles go row by row.";
  if (order === "xcd_remapped" && num_xcds === 1) return "With one cache there is nothing to remap: the grouped order.";
  if (order === "xcd_remapped" && programs % num_xcds) return "Chiplets take items in turn only where their number " +
    "divides the multiprocessors.";
  return IN_GROUPS.includes(order) ? "" : "Row tiles a group: for the orders grouped and xcd remapped.";
}

function render({ model, el }) {
  const root = make("div", { class: "tile-map" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const [fields, step, play, asTable] =
    [[...root.querySelectorAll("[name]")], find("[name=step]"), find(".play"), find(".as-table")];
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  const prefix = `tile-${Math.random().toString(36).slice(2)}`; // ids belong to the page, which may hold two of us
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let [frame, timer, found, foundFor] = [0, 0, null, ""];

  const readState = () => Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));

  // The schedule, made again only when something other than the step has changed. Too many tiles are none.
  function look() {
    const state = readState();
    const key = JSON.stringify({ ...state, step: 0 });
    const drawn = countTiles(state) > MOST_TILES ? { ...state, presets: { [state.preset]: [0] } } : state;
    if (key !== foundFor) [found, foundFor] = [schedule(drawn), key];
    return { state: { ...state, step: Math.min(state.step, found.moments.length - 1) }, found };
  }

  function setFields(state, counts) {
    const names = Object.keys(state.presets);
    const preset = find("[name=preset]");
    if (preset.options.length !== names.length) {
      preset.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    }
    step.max = counts.last_step;
    for (const field of fields) {
      field.value = state[field.name];
      if (field.type === "range") field.nextElementSibling.textContent = state[field.name];
    }
    step.setAttribute("aria-valuetext", counts.kind === "wave" ?
      `${nameMoment(counts)}, ${many(counts.running, "tile")}` : nameMoment(counts));
    find("[name=order]").disabled = !ORDERED.includes(state.scheduler);
    find("[name=group_m]").disabled = !ORDERED.includes(state.scheduler) || !IN_GROUPS.includes(state.order);
    find(".applies").textContent = nameApplying(state);
    play.textContent = timer ? "Pause" : calm.matches ? "Jump to the end" : "Play";
  }

  function say(parts) {
    if (timer) return; // while it plays, a sentence a frame would drown a screen reader
    parts.forEach((text, part) => {
      const node = find(".summary").children[part];
      if (node.textContent !== text) node.textContent = text;
    });
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const { state, found } = look();
    const now = found.moments[state.step];
    const counts = tally(state, found);
    setFields(state, counts);
    say(sayParts(state, counts));
    const empty = !found.visits.length;
    play.disabled = step.disabled = empty;
    find(".figures").hidden = empty;
    find(".figures").replaceChildren(...makeFigures(state, counts));
    find(".picture").hidden = asTable.checked || empty;
    find(".tables").hidden = !asTable.checked || empty;
    if (asTable.checked) find(".tables").replaceChildren(...makeTables(state, found, now));
    else {
      find(".legend").replaceChildren(...drawLegend(counts, `${prefix}-legend`));
      find(".pictures").replaceChildren(drawMap(state, found, now, `${prefix}-map`),
        drawChart(state, found, counts, now, `${prefix}-chart`));
    }
  }

  // One drawing a frame, however many traits have changed.
  const queueDrawing = () => { frame ||= requestAnimationFrame(draw); };

  function stop() {
    clearInterval(timer);
    timer = 0;
    model.save_changes();
    queueDrawing();
  }

  function advance() {
    const { state: { step: at }, found: { moments } } = look();
    if (at < moments.length - 1) model.set("step", at + 1);
    if (at >= moments.length - 2) stop();
  }

  function start() {
    const { state: { step: at }, found: { moments } } = look();
    if (calm.matches) { model.set("step", moments.length - 1); model.save_changes(); return; }
    if (at === moments.length - 1) model.set("step", 0);
    timer = setInterval(advance, Math.max(FASTEST_MS, Math.min(SLOWEST_MS, WHOLE_MS / moments.length)));
    queueDrawing();
  }

  function setField({ name, value }) {
    if (timer) stop();
    model.set(name, ["preset", "scheduler", "order"].includes(name) ? value : Number(value));
    model.save_changes();
  }

  for (const field of fields) field.addEventListener("input", () => setField(field));
  play.addEventListener("click", () => (timer ? stop() : start()));
  asTable.addEventListener("change", queueDrawing);
  calm.addEventListener("change", queueDrawing);
  for (const name of TRAITS) model.on(`change:${name}`, queueDrawing);
  draw();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, queueDrawing);
    calm.removeEventListener("change", queueDrawing);
    cancelAnimationFrame(frame);
    clearInterval(timer);
    el.replaceChildren();
  };
}

export default { render };
