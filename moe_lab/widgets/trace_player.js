// Trace player: two recorded calls on one time axis, what ran in them, the gaps between, and what a roofline allows.
// The first half is arithmetic without a page, the twin of trace_player.py; a test compares the two.

const TRAITS = ["categories", "traces", "first", "second", "brush", "search", "bar", "refused"];
const SIDES = ["A", "B"];
const [MOST_NAMED, MOST_ROWS] = [3, 12];
const PREFIXES = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]];
const [NAME, CATEGORY, LANE, START, DURATION, FLOPS, BYTES] = [0, 1, 2, 3, 4, 5, 6]; // of an event, as it is sent

const times = (length, make) => Array.from({ length }, (_, number) => make(number));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const endOf = (event) => event[START] + event[DURATION];
const isCpu = (lane) => lane.startsWith("CPU");

// Whole nanoseconds, a half upwards.
export const asNs = (microseconds) => Math.floor(microseconds * 1000 + 0.5);

// The traces that are shown, A before B.
export const shownOf = ({ traces, first, second }) => [first, second].filter(Boolean)
  .map((name) => traces.find((trace) => trace.name === name) ?? traces[0]);

const longestOf = (state) => Math.max(1, ...shownOf(state).map(({ span }) => span));

// What is shown of the common axis: the brush as far as it lies on it, or else all of it.
export function windowOf(state) {
  const longest = longestOf(state);
  const [start, stop] = state.brush.length ? state.brush.map(asNs) : [0, longest];
  return start < longest ? [start, Math.min(stop, longest)] : [0, longest];
}

const isWhole = (state) => windowOf(state)[0] === 0 && windowOf(state)[1] === longestOf(state);

// Whether an event ran on a lane that its trace is about.
const isWorker = (trace, event) => trace.workers.includes(event[LANE]);
const nameWorker = ({ lanes, workers }) => (workers.every((lane) => isCpu(lanes[lane])) ? "operator" : "kernel");

// Whether an event lies at least partly in a stretch of time; one that takes none lies where it starts.
const touches = (event, start, stop) => event[START] < stop && (event[START] >= start || endOf(event) > start);
const within = (event, start, stop) => Math.min(stop, endOf(event)) - Math.max(start, event[START]);

// What each event adds to the time that is covered already, from the left: [event, from, to].
export function cover(events, start, stop) {
  const found = [];
  let done = start;
  for (const event of events) {
    const last = Math.min(stop, endOf(event));
    if (last <= Math.max(done, event[START])) continue;
    found.push([event, Math.max(done, event[START]), last]);
    done = last;
  }
  return found;
}

// The numbers of the names that hold what is searched for.
function hitsOf({ names }, search) {
  const wanted = search.toLowerCase();
  return new Set(names.flatMap((name, number) => (search && name.toLowerCase().includes(wanted) ? [number] : [])));
}

// What is counted of one trace within a stretch of time.
export function tallyTrace(trace, start, stop, search, categories) {
  const workers = trace.events.filter((event) => isWorker(trace, event));
  const by_category = Object.fromEntries(categories.map((name) => [name, 0]));
  for (const [event, first, last] of cover(workers, start, stop)) {
    by_category[categories[event[CATEGORY]]] += last - first;
  }
  const seen = workers.filter((event) => touches(event, start, stop));
  const found = { bars: 0, CPU: 0, GPU: 0 };
  const hits = hitsOf(trace, search);
  for (const event of hits.size ? trace.events : []) {
    if (!hits.has(event[NAME]) || !touches(event, start, stop)) continue;
    found.bars += 1;
    found[isCpu(trace.lanes[event[LANE]]) ? "CPU" : "GPU"] += within(event, start, stop);
  }
  return { window: Math.max(0, Math.min(stop, trace.span) - start), events: seen.length,
    busy: sum(Object.values(by_category)), by_category, flops: sum(seen.map((event) => event[FLOPS] ?? 0)), found };
}

export function tally(state) {
  const [start, stop] = windowOf(state);
  return shownOf(state).map((trace) => tallyTrace(trace, start, stop, state.search, state.categories));
}

// The names of one trace within a stretch of time, those that took the longest first.
export function rank(trace, start, stop, categories) {
  const rows = new Map();
  for (const event of trace.events) {
    if (!isWorker(trace, event) || !touches(event, start, stop)) continue;
    if (!rows.has(event[NAME])) {
      rows.set(event[NAME], { name: trace.names[event[NAME]], category: categories[event[CATEGORY]], calls: 0, time: 0,
        full: 0, flops: 0, bytes: 0 });
    }
    const row = rows.get(event[NAME]);
    row.calls += 1;
    row.time += within(event, start, stop);
    row.full += event[DURATION];
    for (const [key, count] of [["flops", event[FLOPS]], ["bytes", event[BYTES]]]) {
      row[key] = row[key] === null || count === null ? null : row[key] + count;
    }
  }
  return [...rows.values()].sort((a, b) => b.time - a.time);
}

// A number with all its digits, thousands apart; toLocaleString alone is right for tiny ones, and slow.
function plain(number) {
  if (number && Math.abs(number) < 1e-6) return number.toLocaleString("en-US", { maximumFractionDigits: 20 });
  const [whole, rest] = String(number).split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest ? `.${rest}` : "");
}
// A number by its first three digits, a half upwards.
export const threeDigits = (value) => plain(Number(value.toPrecision(3)));
export const perCent = (part, whole) => (whole ? Math.floor((100 * part) / whole + 0.5) : 0);
const many = (number, what) => `${plain(number)} ${what}${number === 1 ? "" : "s"}`;

export function sayNs(nanoseconds) {
  const milliseconds = nanoseconds / 1e6;
  if (milliseconds >= 1e3) return `${threeDigits(milliseconds / 1e3)} s`;
  return milliseconds >= 0.1 ? `${threeDigits(milliseconds)} ms` : `${threeDigits(milliseconds * 1e3)} µs`;
}

export function sayCount(number, unit) {
  const [prefix, size] = PREFIXES.find(([, least]) => number >= least) ?? ["", 1];
  return `${threeDigits(number / size)} ${prefix}${unit}`;
}

// How much was done and at what rate; nothing where nobody counted.
export function sayWork(count, unit, duration) {
  if (count === null) return "";
  return sayCount(count, unit) + (count && duration ? ` at ${sayCount(count / (duration / 1e9), `${unit}/s`)}` : "");
}

// One trace's part of the sentence.
function sayTrace(side, trace, { window, events, busy, by_category }, whole) {
  const who = `${side}, ${trace.name} on ${trace.device}`;
  if (!window) return `${who}: ${whole ? "nothing was recorded" : "over by then"}.`;
  const longest = Object.entries(by_category).filter(([, time]) => time).sort(([, a], [, b]) => b - a);
  const named = longest.slice(0, MOST_NAMED).map(([name, time]) => `${name} ${perCent(time, window)} %`).join(", ");
  const share = perCent(busy, window);
  return `${who}: ${sayNs(window)}, ${share} % in ${many(events, nameWorker(trace))}${named && ` (${named})`}, ` +
    `${100 - share} % in gaps${whole ? sayWhole(trace) : ""}.`;
}

// How long a whole call takes without the profiler, and beside the roofline, as far as either is known.
function sayWhole({ span, floor, bare }) {
  const parts = bare ? [`without the profiler ${sayNs(bare)}`] : [];
  if (floor) parts.push(`${threeDigits((bare ?? span) / floor)} times the ${sayNs(floor)} that the roofline allows`);
  return parts.length ? `; ${parts.join(", ")}` : "";
}

// How the times of two whole calls compare, and how their FLOPs do where both were counted.
function compare([traceA, traceB], [a, b]) {
  const bare = traceA.bare && traceB.bare;
  const [longer, more] = [bare ? [traceA.bare, traceB.bare] : [traceA.span, traceB.span], [a.flops, b.flops]]
    .map(([one, other]) => (one && other ? threeDigits(one / other) : ""));
  const said = `${bare ? "Without the profiler " : ""}A takes ${longer === "1" ? "" : `${longer} times `}as long as B`;
  if (!more) return `${said}.`;
  return `${said}, for ${more === "1" ? "as many FLOPs" : `${more} times its FLOPs`}.`;
}

function sayHits(side, { bars, ...found }) {
  if (!bars) return `no bar of ${side}`;
  const spent = Object.entries(found).filter(([, time]) => time).map(([lane, time]) => `${sayNs(time)} on the ${lane}`);
  return `${many(bars, "bar")} of ${side}${spent.length ? ` (${spent.join(", ")})` : ""}`;
}

export function summarise(state, found = tally(state)) {
  const [whole, [start, stop], shown] = [isWhole(state), windowOf(state), shownOf(state)];
  const parts = whole ? [] : [`From ${sayNs(start)} to ${sayNs(stop)}.`];
  parts.push(...found.map((one, side) => sayTrace(SIDES[side], shown[side], one, whole)));
  if (whole && found.length === 2 && found.every(({ window }) => window)) parts.push(compare(shown, found));
  if (state.search) {
    const hits = found.map((one, side) => sayHits(SIDES[side], one.found));
    parts.push(`“${state.search}” is in ${hits.join(" and in ")}.`);
  }
  return parts.join(" ");
}

// The numbers of the events on one lane.
const laneOf = ({ events }, lane) => events.flatMap((event, number) => (event[LANE] === lane ? [number] : []));

// The sentence about one bar.
export function sayBar(state, [side, number] = state.bar) {
  const trace = shownOf(state)[side];
  const event = trace?.events[number];
  if (!event) return "";
  const lane = laneOf(trace, event[LANE]);
  const [flops, bytes] = [sayWork(event[FLOPS], "FLOP", event[DURATION]), sayWork(event[BYTES], "B", event[DURATION])];
  const work = flops || bytes ? `${flops || "FLOPs not counted"}, ${bytes || "bytes not counted"}` :
    "FLOPs and bytes not counted";
  return `${SIDES[side]}, ${trace.lanes[event[LANE]]}, bar ${lane.indexOf(number)} of 0..${lane.length - 1}: ` +
    `${trace.names[event[NAME]]}, ${state.categories[event[CATEGORY]]}, ` +
    `${sayNs(event[DURATION])} from ${sayNs(event[START])} on; ${work}.`;
}

// Where a key leads from the bar that is looked at, in the trace of one side: the number of an event.
export function moveBar(state, side, key) {
  const trace = shownOf(state)[side];
  const [start, stop] = windowOf(state);
  const here = state.bar[0] === side ? trace.events[state.bar[1]] : undefined;
  if (!here) { // the first that is in sight, or for End the last, if possible of what the trace is about
    const seen = trace.events.flatMap((event, number) => (touches(event, start, stop) ? [number] : []));
    const mine = seen.filter((number) => isWorker(trace, trace.events[number]));
    const some = mine.length ? mine : seen;
    return some.at(key === "End" ? -1 : 0) ?? 0;
  }
  const lane = laneOf(trace, here[LANE]);
  const at = lane.indexOf(state.bar[1]);
  const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: lane.length - 1 };
  if (key in places) return lane[Math.max(0, Math.min(lane.length - 1, places[key]))];
  const next = here[LANE] + (key === "ArrowDown" ? 1 : -1);
  if (next < 0 || next >= trace.lanes.length) return state.bar[1];
  const other = laneOf(trace, next);
  const middle = here[START] + here[DURATION] / 2;
  return other.findLast((number) => trace.events[number][START] <= middle) ?? other[0];
}

// A brush as the model keeps it: microseconds, nothing for the whole axis, never shorter than can be drawn.
export function brushOf(from, to, longest) {
  const least = Math.max(1, Math.ceil(longest / MOST_ZOOM));
  const start = Math.max(0, Math.min(Math.round(from), longest - least));
  const stop = Math.min(longest, Math.max(Math.round(to), start + least));
  return start === 0 && stop === longest ? [] : [start / 1000, stop / 1000];
}

// The brush made longer or shorter by a factor, around a moment that stays where it is on the screen.
export function zoom(state, factor, moment) {
  const [start, stop] = windowOf(state);
  const middle = Math.max(start, Math.min(stop, moment ?? (start + stop) / 2));
  return brushOf(middle - (middle - start) * factor, middle + (stop - middle) * factor, longestOf(state));
}

// The brush, moved where a bar would be out of sight.
export function follow(state, event) {
  const [[start, stop], longest] = [windowOf(state), longestOf(state)];
  if (touches(event, start, stop)) return state.brush;
  const long = stop - start;
  const from = Math.max(0, Math.min(longest - long, event[START] + event[DURATION] / 2 - long / 2));
  return brushOf(from, from + long, longest);
}

// The bars of a lane in pixels: [category, hit, x, y, wide, high], heights in parts of the lane's. Those narrower than
// a pixel share one, each as high as its share of it, so that a picture has no more boxes than its pixels have kinds.
export function layOut(covered, start, stop, width, hits) {
  const scale = width / (stop - start);
  const boxes = [];
  let [column, shares] = [-1, new Map()];
  const flush = () => {
    let filled = 0;
    for (const [kind, share] of shares) {
      filled += share;
      boxes.push([Math.floor(kind / 2), Boolean(kind % 2), column, 1 - filled, 1, share]);
    }
    shares = new Map();
  };
  const add = (where, kind, share) => {
    if (where !== column) { flush(); column = where; }
    shares.set(kind, (shares.get(kind) ?? 0) + share);
  };
  for (const [event, first, last] of covered) {
    const [x, wide] = [(first - start) * scale, (last - first) * scale];
    const hit = hits.has(event[NAME]);
    if (wide >= 1) { boxes.push([event[CATEGORY], hit, x, 0, wide, 1]); continue; }
    const [where, kind] = [Math.floor(x), 2 * event[CATEGORY] + hit];
    const here = Math.min(wide, where + 1 - x);
    add(where, kind, here);
    if (wide > here) add(where + 1, kind, wide - here);
  }
  flush();
  return boxes;
}

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const MOST_ZOOM = 5000; // how many times shorter than the axis a brush may be
const [LEFT, TOP, LANE_HIGH, LANE_GAP, BOTTOM, STRIP] = [92, 20, 26, 5, 20, 13];
const NARROW = 4; // a bar of fewer pixels has neither pattern nor edge
const LETTER = 6.4; // about as wide as a letter of a label is
const PATTERNS = ["", "M0 6L6 0", "M0 3H6", "M0 0L6 6", "M3 0V6", "M2 3h2M3 2v2", "M0 0L6 6M0 6L6 0"];
const GAP = "M0 8L8 0M-2 2L2 -2M6 10L10 6";
const STEP = 200; // the sliders of the brush have so many places

const VALUE = '<span aria-hidden="true"></span>'; // the number beside a slider, which says its own aloud
const PAGE = `
<div class="controls">
  <label>A <select name="first"></select></label>
  <label>B <select name="second"></select></label>
  <label>Search names <input name="search" type="search" size="14" spellcheck="false"></label>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<div class="controls">
  <label>From <input name="from" type="range" min="0" max="${STEP}">${VALUE}</label>
  <label>To <input name="to" type="range" min="0" max="${STEP}">${VALUE}</label>
  <button type="button" class="whole">Whole call</button>
</div>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<div class="picture">
  <div class="legend"></div>
  <div class="overview"></div>
  <div class="sides"></div>
  <p class="bar"></p>
  <div class="sums"></div>
  <p class="hint">A bar is an operator or a kernel. Drag over a picture to choose a stretch of time, click a bar to look
    at it. With the keyboard, in the bars of A or B: arrows go from bar to bar and from lane to lane, Home and End to
    the first and last of a lane, + and − make the stretch of time shorter and longer, 0 shows the whole call. Bars
    narrower than a pixel share one, each as high as its part of that time. Times by category leave out the CPU's lanes
    where a GPU did the work. The profiler takes time too: believe the times without it where they are known.</p>
</div>
<div class="tables" hidden></div>`;

const DRAWN = ["svg", "g", "path", "rect", "text", "defs", "pattern"];

function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const makePattern = (id, kind, size, d) =>
  make("pattern", { id, class: kind, width: size, height: size, patternUnits: "userSpaceOnUse" },
    make("rect", { width: size, height: size }), make("path", { d: d || "M0 0" }));
const makePatterns = (prefix) => make("svg", { class: "patterns", width: 0, height: 0, "aria-hidden": "true" },
  make("defs", {}, ...PATTERNS.map((d, number) => makePattern(`${prefix}-${number}`, `category-${number}`, 6, d)),
    makePattern(`${prefix}-gap`, "gap", 8, GAP)));

const short = (number) => Number(number.toFixed(2));
const box = (x, y, wide, high) => `M${short(x)} ${short(y)}h${short(wide)}v${short(high)}h${short(-wide)}z`;
const write = (kind, x, y, text) => make("text", { class: kind, x: short(x), y: short(y) }, text);

// Round times along the axis, and the unit that they are written in.
export function ticksOf(start, stop, most) {
  const raw = (stop - start) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(raw));
  const every = Math.max(1, power * [1, 2, 5, 10].find((step) => step * power >= raw * 0.999));
  const first = Math.ceil(start / every);
  return times(Math.max(0, Math.floor(stop / every) - first + 1), (number) => (first + number) * every);
}

function sayTick(nanoseconds, stop) {
  const [unit, size] = stop >= 1e9 ? ["s", 1e9] : stop >= 1e6 ? ["ms", 1e6] : ["µs", 1e3];
  return `${plain(Number((nanoseconds / size).toPrecision(9)))} ${unit}`;
}

// All boxes of a picture as one path for each category, those that a search left out apart and pale. Narrow ones have
// no pattern, which nobody would see, and no edge.
function drawBoxes(boxes, prefix, searching) {
  const paths = new Map();
  const edges = { edges: [], found: [] };
  for (const [category, hit, x, y, wide, high] of boxes) {
    const kind = `area category-${category}${searching && !hit ? " dim" : ""}${wide < NARROW ? " fine" : ""}`;
    if (!paths.has(kind)) paths.set(kind, [category, []]);
    paths.get(kind)[1].push(box(x, y, wide, high));
    if (wide >= NARROW) edges[hit ? "found" : "edges"].push(box(x, y, wide, high));
  }
  return [...[...paths].map(([kind, [category, some]]) =>
    make("path", { class: kind, fill: `url(#${prefix}-${category})`, d: some.join("") })),
  ...Object.entries(edges).map(([kind, some]) => make("path", { class: kind, d: some.join("") }))];
}

// The bars of one lane, moved to their place in the picture.
const place = (boxes, left, top, high) =>
  boxes.map(([category, hit, x, y, wide, share]) => [category, hit, left + x, top + y * high, wide, share * high]);

// The line of the roofline's time, with its words above it, to the right where they fit.
function drawFloor(floor, at, top, low, right) {
  const words = `roofline ${sayNs(floor)}`;
  const aside = at + LETTER * words.length + 6 > right;
  return [make("path", { class: "floor", d: `M${short(at)} ${short(top - 6)}V${short(low)}` }),
    write(aside ? "end floor-words" : "floor-words", at + (aside ? -4 : 4), top - 7, words)];
}

function drawAxis(start, stop, x, width, low) {
  const ticks = ticksOf(start, stop, (width - LEFT) / 90);
  const lines = ticks.map((tick) => `M${short(x(tick))} ${TOP}V${low + 4}`).join("");
  return [make("path", { class: "grid", d: lines }), ...ticks.map((tick) => {
    const end = x(tick) > width - 24;
    return write(end ? "end" : "middle", end ? width : x(tick), low + 16, sayTick(tick, stop));
  })];
}

// One trace: its lanes from the top down, time to the right.
function drawLanes(state, side, width, prefix) {
  const trace = shownOf(state)[side];
  const [start, stop] = windowOf(state);
  const [hits, across] = [hitsOf(trace, state.search), width - LEFT];
  const x = (time) => LEFT + ((time - start) * across) / (stop - start);
  const topOf = (lane) => TOP + lane * (LANE_HIGH + LANE_GAP);
  const low = topOf(trace.lanes.length) - LANE_GAP;
  const lanes = trace.lanes.map((_, lane) => cover(trace.events.filter((event) => event[LANE] === lane), start, stop));
  const boxes = lanes.flatMap((covered, lane) =>
    place(layOut(covered, start, stop, across, hits), LEFT, topOf(lane), LANE_HIGH));
  const end = x(Math.max(start, Math.min(stop, trace.span)));
  const gaps = lanes.map((_, lane) => box(LEFT, topOf(lane), end - LEFT, LANE_HIGH)); // what no bar will cover
  const [over, floor] = [trace.span > start && trace.span < stop, trace.floor];
  // hidden, since it stands in a slider, which says what there is bar by bar; the sums have the rest
  return make("svg", { "aria-hidden": "true", width, height: low + BOTTOM, viewBox: `0 0 ${width} ${low + BOTTOM}` },
  ...drawAxis(start, stop, x, width, low),
  make("path", { class: "gap", fill: `url(#${prefix}-gap)`, d: gaps.join("") }),
  ...drawBoxes(boxes, prefix, state.search),
  ...trace.lanes.map((name, lane) => write("end", LEFT - 6, topOf(lane) + LANE_HIGH / 2 + 4, name)),
  ...(over ? [make("path", { class: "over", d: `M${short(x(trace.span))} ${TOP - 4}V${low}` })] : []),
  ...(floor && floor >= start && floor <= stop ? drawFloor(floor, x(floor), TOP, low, width) : []),
  make("path", { class: "looked-at" }), make("path", { class: "pointed-at" }));
}

// Both traces from end to end, with the stretch of time that is chosen.
function drawOverview(state, width, prefix) {
  const [shown, longest, across] = [shownOf(state), longestOf(state), width - LEFT];
  const high = shown.length * (STRIP + 3) + 4;
  const boxes = shown.flatMap((trace, side) => {
    const workers = cover(trace.events.filter((event) => isWorker(trace, event)), 0, longest);
    return place(layOut(workers, 0, longest, across, hitsOf(trace, state.search)), LEFT, 4 + side * (STRIP + 3), STRIP);
  });
  return make("svg", { role: "img", width, height: high, viewBox: `0 0 ${width} ${high}` },
    ...drawBoxes(boxes, prefix, state.search),
    ...shown.map((_, side) => write("end", LEFT - 6, 4 + side * (STRIP + 3) + STRIP - 2, SIDES[side])),
    make("path", { class: "rest" }), make("path", { class: "chosen" }));
}

// The stretch of time that is chosen, in an overview that is there already.
function choose(svg, state, width) {
  const [longest, [start, stop]] = [longestOf(state), windowOf(state)];
  const [left, right] = [start, stop].map((time) => LEFT + (time * (width - LEFT)) / longest);
  const high = svg.viewBox.baseVal.height;
  svg.setAttribute("aria-label", `Overview of ${sayNs(longest)}, chosen ${sayNs(start)} to ${sayNs(stop)}`);
  svg.querySelector(".rest").setAttribute("d", box(LEFT, 0, left - LEFT, high) + box(right, 0, width - right, high));
  const wide = Math.max(1, Math.min(right, width - 1) - left);
  svg.querySelector(".chosen").setAttribute("d", box(left, 1, wide, high - 2));
}

// What the time of one trace was for, with what is left over.
const partsOf = ({ window, busy, by_category }) =>
  [...Object.entries(by_category), ["gaps", window - busy]].filter(([, time]) => time);

// The sums of one trace as a bar, with words where there is room for them.
function drawSum(state, side, one, scale, width, prefix) {
  const top = TOP + side * (LANE_HIGH + 22);
  const [paths, words] = [[], [write("end", LEFT - 6, top + 11, SIDES[side]),
    write("end", LEFT - 6, top + 24, sayNs(one.window))]];
  let at = LEFT;
  for (const [name, time] of partsOf(one)) {
    const [wide, number, text] = [time * scale, state.categories.indexOf(name), `${name} ${sayNs(time)}`];
    const [kind, fill] = number < 0 ? ["gap", "gap"] : [`area category-${number}`, number];
    const d = box(at, top, wide, LANE_HIGH);
    paths.push(make("path", { class: kind, "data-part": name, fill: `url(#${prefix}-${fill})`, d }));
    if (wide >= NARROW) paths.push(make("path", { class: "edges", d }));
    if (LETTER * text.length < wide - 6) words.push(write("middle", at + wide / 2, top + 17, text));
    at += wide;
  }
  const { floor } = shownOf(state)[side];
  const line = floor && isWhole(state) ? drawFloor(floor, LEFT + floor * scale, top, top + LANE_HIGH + 2, width) : [];
  return [...paths, ...line, ...words];
}

// The sums of both traces, one bar each on a common scale.
function drawSums(state, found, width, prefix) {
  const floors = isWhole(state) ? shownOf(state).map(({ floor }) => floor || 0) : [];
  const scale = (width - LEFT) / Math.max(1, ...found.map(({ window }) => window), ...floors);
  const label = found.map((one, side) => [SIDES[side], ...partsOf(one)
    .map(([name, time]) => `${name} ${perCent(time, one.window)} %`)].join(", ")).join("; ");
  const high = TOP + found.length * (LANE_HIGH + 22) - 14;
  return make("figure", {}, make("figcaption", {}, "Time by category"),
    make("svg", { role: "img", "aria-label": `Time by category, ${label}`, width, height: high,
      viewBox: `0 0 ${width} ${high}` },
    ...found.flatMap((one, side) => drawSum(state, side, one, scale, width, prefix))));
}

function drawLegend(state, found, prefix) {
  const there = state.categories.map((name, number) => [name, number])
    .filter(([name]) => found.some(({ by_category }) => by_category[name]));
  const other = new Set(shownOf(state).flatMap(({ events }) => events.map((event) => event[CATEGORY])));
  const kinds = there.length ? there : [...other].map((number) => [state.categories[number], number]);
  const area = (kind, name) => make("path", { class: kind, fill: `url(#${prefix}-${name})`, d: "M0.5 0.5h21v13h-21z" });
  const items = kinds.map(([name, number]) => [name, area(`area category-${number}`, number)]);
  items.push(["gap: nothing runs", area("gap", "gap")]);
  if (shownOf(state).some(({ floor }) => floor)) {
    items.push(["the roofline's time", make("path", { class: "floor", d: "M11 0V14" })]);
  }
  return items.map(([text, mark]) => make("span", {},
    make("svg", { "aria-hidden": "true", width: 22, height: 14 }, mark), text));
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function makeTables(state, found) {
  const [shown, [start, stop]] = [shownOf(state), windowOf(state)];
  const cells = (timeOf) => found.map((one) => `${sayNs(timeOf(one))} (${perCent(timeOf(one), one.window)} %)`);
  const sums = [...state.categories.map((name) => [name, ...cells(({ by_category }) => by_category[name])]),
    ["gaps", ...cells(({ window, busy }) => window - busy)], ["together", ...found.map(({ window }) => sayNs(window))]];
  for (const [title, key] of [["whole call without the profiler", "bare"], ["roofline, whole call", "floor"]]) {
    if (shown.some((trace) => trace[key])) {
      sums.push([title, ...shown.map((trace) => (trace[key] ? sayNs(trace[key]) : "not known"))]);
    }
  }
  const say = (count, unit) => (count === null ? "not counted" : sayCount(count, unit));
  const tops = shown.map((trace, side) => {
    const rows = rank(trace, start, stop, state.categories).slice(0, MOST_ROWS);
    return makeTable(`What took longest in ${SIDES[side]}, ${trace.name}`,
      ["Name", "For", "Calls", "Time", "Share", "FLOPs", "Bytes", "FLOPs a second"],
      rows.map(({ name, category, calls, time, full, flops, bytes }) => [name, category, plain(calls), sayNs(time),
        `${perCent(time, found[side].window)} %`, say(flops, "FLOP"), say(bytes, "B"),
        flops && full ? sayCount(flops / (full / 1e9), "FLOP/s") : "-"]));
  });
  const titles = shown.map(({ name }, side) => `${SIDES[side]}, ${name}`);
  return [makeTable("Time by category", ["", ...titles], sums), ...tops];
}

function render({ model, el }) {
  const root = make("div", { class: "trace-player" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const [from, to, search, asTable] = ["[name=from]", "[name=to]", "[name=search]", ".as-table"].map(find);
  const picks = ["first", "second"].map((name) => find(`[name=${name}]`));
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  const prefix = `trace-${Math.random().toString(36).slice(2)}`; // ids belong to the page, which may hold two of us
  root.prepend(makePatterns(prefix));
  let [frame, width, listed, drag, overviewOf] = [0, 0, null, null, ""];

  const readState = () => Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
  const widthNow = () => Math.max(440, Math.min(1100, root.clientWidth - 16));

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  function drawFields(state) {
    if (listed !== state.traces) {
      overviewOf = "";
      const names = state.traces.map(({ name }) => name);
      picks.forEach((pick, side) => pick.replaceChildren(...names.map((name) => make("option", { value: name }, name)),
        ...(side ? [make("option", { value: "" }, "none")] : [])));
      listed = state.traces;
    }
    [picks[0].value, picks[1].value] = [state.first, state.second];
    if (search.value !== state.search) search.value = state.search;
    const longest = longestOf(state);
    windowOf(state).forEach((time, end) => {
      const field = [from, to][end];
      field.value = Math.round((time * STEP) / longest);
      field.setAttribute("aria-valuetext", sayNs(time));
      field.nextElementSibling.textContent = sayNs(time);
    });
  }

  // The element of each side stays, so that the focus does too.
  function drawSides(state) {
    const shown = shownOf(state);
    const { children } = find(".sides");
    while (children.length > shown.length) children[children.length - 1].remove();
    while (children.length < shown.length) find(".sides").append(makeSide(children.length));
    shown.forEach((trace, side) => {
      const figure = children[side];
      figure.querySelector("figcaption").replaceChildren(make("b", {}, `${SIDES[side]}: ${trace.name}`), " ",
        make("span", { class: "about" }, trace.about));
      const lanes = figure.querySelector(".lanes");
      lanes.replaceChildren(drawLanes(state, side, width, prefix));
      const own = state.bar[0] === side ? trace.events[state.bar[1]] : null;
      const lane = own ? laneOf(trace, own[LANE]) : [];
      lanes.setAttribute("aria-valuemin", 0);
      lanes.setAttribute("aria-valuemax", Math.max(0, lane.length - 1));
      lanes.setAttribute("aria-valuenow", Math.max(0, lane.indexOf(state.bar[1])));
      lanes.setAttribute("aria-valuetext", own ? sayBar(state) : "no bar is looked at");
      if (own) outline(state, [side, state.bar[1]], ".looked-at");
    });
    find(".bar").textContent = sayBar(state) || "No bar is looked at.";
  }

  function makeSide(side) {
    const lanes = make("div", { class: "lanes", role: "slider", tabindex: 0, "aria-label": `Bars of ${SIDES[side]}`,
      [QUIET]: "" });
    lanes.addEventListener("keydown", (event) => press(event, side));
    lanes.addEventListener("pointerdown", (event) => startDrag(event, side));
    lanes.addEventListener("pointermove", (event) => point(event, side));
    lanes.addEventListener("pointerleave", () => pointAt(null));
    return make("figure", {}, make("figcaption", {}), lanes);
  }

  // A frame around one bar.
  function outline(state, [side, number], selector) {
    const { events } = shownOf(state)[side];
    const [event, [start, stop]] = [events[number], windowOf(state)];
    const x = (time) => LEFT + ((Math.max(start, Math.min(stop, time)) - start) * (width - LEFT)) / (stop - start);
    const wide = Math.max(2, x(endOf(event)) - x(event[START]));
    const frame = box(x(event[START]) - 1, TOP + event[LANE] * (LANE_HIGH + LANE_GAP) - 1, wide + 2, LANE_HIGH + 2);
    const seen = touches(event, start, stop);
    find(".sides").children[side].querySelector(selector).setAttribute("d", seen ? frame : "M0 0");
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const found = tally(state);
    drawFields(state);
    const sentence = summarise(state, found);
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    find(".picture").hidden = asTable.checked;
    find(".tables").hidden = !asTable.checked;
    width = widthNow();
    if (asTable.checked) { find(".tables").replaceChildren(...makeTables(state, found)); return; }
    find(".legend").replaceChildren(...drawLegend(state, found, prefix));
    // all of the traces is drawn again only where something other than the stretch of time has changed
    const key = JSON.stringify([state.first, state.second, state.search, width]);
    if (key !== overviewOf) find(".overview").replaceChildren(drawOverview(state, width, prefix));
    overviewOf = key;
    choose(find(".overview svg"), state, width);
    drawSides(state);
    find(".sums").replaceChildren(drawSums(state, found, width, prefix));
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };
  const watcher = new ResizeObserver(() => { if (widthNow() !== width) schedule(); });

  // Looking at a bar; the time that is shown follows it.
  function lookAt(side, number) {
    const state = readState();
    update({ bar: [side, number], brush: follow(state, shownOf(state)[side].events[number]) });
  }

  function press(event, side) {
    const state = readState();
    const trace = shownOf(state)[side];
    const own = state.bar[0] === side ? trace.events[state.bar[1]] : null;
    const middle = own && own[START] + own[DURATION] / 2;
    const zooms = { "+": 0.5, "=": 0.5, "-": 2, "−": 2 };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in zooms) update({ brush: zoom(state, zooms[event.key], middle) });
    else if (event.key === "0") update({ brush: [] });
    else if (event.key === "Escape" && own) update({ bar: [] });
    else if (!/^Arrow|^Home$|^End$/.test(event.key) || !trace.events.length) return;
    else lookAt(side, moveBar(state, side, event.key));
    event.preventDefault();
    event.stopPropagation();
  }

  // The time under the pointer, in a picture that shows start..stop.
  function timeAt(event, svg, [start, stop]) {
    const place = svg.getBoundingClientRect();
    const x = ((event.clientX - place.left) * width) / place.width;
    return start + (Math.max(0, Math.min(1, (x - LEFT) / (width - LEFT))) * (stop - start));
  }

  // The bar under the pointer, or within three pixels of it.
  function barAt(event, side) {
    const state = readState();
    const [trace, shown] = [shownOf(state)[side], windowOf(state)];
    const svg = find(".sides").children[side].querySelector("svg");
    const place = svg.getBoundingClientRect();
    const lane = Math.floor((((event.clientY - place.top) * width) / place.width - TOP) / (LANE_HIGH + LANE_GAP));
    const [time, near] = [timeAt(event, svg, shown), (3 * (shown[1] - shown[0])) / (width - LEFT)];
    const away = (one) => Math.max(one[START] - time, time - endOf(one), 0);
    const close = trace.events.flatMap((one, number) => (one[LANE] === lane && away(one) <= near ? [number] : []));
    return close.reduce((best, number) =>
      (best === null || away(trace.events[number]) < away(trace.events[best]) ? number : best), null);
  }

  function pointAt(bar) {
    const state = readState();
    for (const path of root.querySelectorAll(".pointed-at")) path.setAttribute("d", "M0 0");
    if (bar) outline(state, bar, ".pointed-at");
    find(".bar").textContent = sayBar(state, bar ?? state.bar) || "No bar is looked at.";
  }

  function point(event, side) {
    if (drag) return;
    const number = barAt(event, side);
    pointAt(number === null ? null : [side, number]);
  }

  function startDrag(event, side = null) {
    if (event.button) return;
    const state = readState();
    const svg = event.currentTarget.querySelector("svg");
    const shown = side === null ? [0, longestOf(state)] : windowOf(state);
    drag = { side, shown, x: event.clientX, time: timeAt(event, svg, shown), moved: false };
    addEventListener("pointermove", moveDrag);
    addEventListener("pointerup", endDrag);
    addEventListener("pointercancel", stopDrag);
    event.preventDefault();
    event.currentTarget.focus?.({ preventScroll: true });
  }

  // The overview follows the pointer. In the bars of a side the stretch is only marked until the pointer is let go, or
  // the time under it would run away.
  function moveDrag(event) {
    if (Math.abs(event.clientX - drag.x) > 4) drag.moved = true;
    if (!drag.moved) return;
    const place = drag.side === null ? find(".overview") : find(".sides").children[drag.side];
    const ends = [drag.time, timeAt(event, place.querySelector("svg"), drag.shown)];
    drag.brush = brushOf(Math.min(...ends), Math.max(...ends), longestOf(readState()));
    if (drag.side === null) { model.set("brush", drag.brush); return; }
    const [start, stop] = drag.shown;
    const [left, right] = [Math.min(...ends), Math.max(...ends)]
      .map((time) => LEFT + ((time - start) * (width - LEFT)) / (stop - start));
    for (const svg of root.querySelectorAll(".lanes svg")) {
      const frame = box(left, TOP - 4, right - left, svg.viewBox.baseVal.height - 36);
      svg.querySelector(".pointed-at").setAttribute("d", frame);
    }
  }

  function stopDrag() {
    removeEventListener("pointermove", moveDrag);
    removeEventListener("pointerup", endDrag);
    removeEventListener("pointercancel", stopDrag);
    drag = null;
  }

  function endDrag(event) {
    const { side, moved, brush } = drag;
    stopDrag();
    if (moved) { update({ brush }); return; }
    if (side === null) return;
    const number = barAt(event, side);
    if (number === null) update({ bar: [] });
    else lookAt(side, number);
  }

  function setEnd(end) {
    const state = readState();
    const longest = longestOf(state);
    const ends = windowOf(state);
    ends[end] = (Number([from, to][end].value) * longest) / STEP;
    const least = longest / STEP;
    if (end === 0) ends[0] = Math.min(ends[0], ends[1] - least);
    else ends[1] = Math.max(ends[1], ends[0] + least);
    update({ brush: brushOf(ends[0], ends[1], longest) });
    schedule(); // also where nothing has changed, so that the slider goes back to where it may be
  }

  // Another trace on a side: the bar that was looked at there is gone.
  function pick(side) {
    const { bar } = readState();
    update({ [side ? "second" : "first"]: picks[side].value, bar: bar[0] === side ? [] : bar });
  }

  picks.forEach((field, side) => field.addEventListener("change", () => pick(side)));
  search.addEventListener("input", () => update({ search: search.value }));
  from.addEventListener("input", () => setEnd(0));
  to.addEventListener("input", () => setEnd(1));
  find(".whole").addEventListener("click", () => update({ brush: [] }));
  find(".overview").addEventListener("pointerdown", (event) => startDrag(event));
  asTable.addEventListener("change", schedule);
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  draw();
  watcher.observe(root);
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    watcher.disconnect();
    if (drag) stopDrag();
    cancelAnimationFrame(frame);
    el.replaceChildren();
  };
}

export default { render };
