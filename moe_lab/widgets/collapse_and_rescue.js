// Collapse and rescue: where the assignments of a training run went, for two methods side by side.
// The first half is arithmetic without a page, the twin of collapse_and_rescue.py; a test compares the two.

const DATA = ["runs", "steps", "num_experts", "asked", "chance"];
const TRAITS = [...DATA, "method", "compare", "layer", "step", "refused"];
const GROUPS = ["no balancing", "losses", "biases", "rules"];

// Hexadecimal digits, as many for each number: samples by experts.
export function unpack(text, numExperts, samples) {
  const width = text.length / (numExperts * samples);
  const count = (number) => parseInt(text.slice(number * width, (number + 1) * width), 16);
  return times(samples, (sample) => times(numExperts, (expert) => count(sample * numExperts + expert)));
}

// The loads of one layer in one run, samples by experts.
export const loadsOf = ({ num_experts, steps }, run, layer) => unpack(run.loads[layer], num_experts, steps.length);

// The busiest load over the mean, minus 1; 0 without any assignment.
export function maxViolation(load) {
  const total = sum(load);
  return total ? (Math.max(...load) * load.length) / total - 1 : 0;
}

// What one run shows at one sample.
export function tally({ asked }, run, loads, sample) {
  const load = loads[sample];
  const most = Math.max(...load);
  return {
    busiest: load.indexOf(most), share: perCent(most, asked), even: most > 0 && most === Math.min(...load),
    dead: load.filter((count) => !count).length, dropped: asked - sum(load),
    max_violation: maxViolation(load), loss: run.losses[sample],
  };
}

function nameFinding({ asked, num_experts }, { label }, { busiest, share, even, dead, dropped }, of) {
  const who = even ? "every expert" : `expert ${busiest}`;
  const parts = [`${label.slice(0, 1).toUpperCase()}${label.slice(1)}: ${who} takes ${share} %${of}`];
  if (dead) parts.push(`${dead} of ${num_experts} experts ${dead === 1 ? "gets" : "get"} none`);
  else if (!even) parts.push("every expert gets some");
  if (dropped) parts.push(`${perCent(dropped, asked) || "under 1"} % are dropped`);
  return parts.join(", ");
}

// The two runs that are shown, with their loads in the present layer and their tallies at the present step.
export function compareRuns(state) {
  const sample = Math.max(0, state.steps.indexOf(state.step));
  return [state.method, state.compare].map((name) => {
    const run = state.runs.find((one) => one.name === name) ?? state.runs[0];
    const loads = loadsOf(state, run, state.layer);
    return { run, loads, found: tally(state, run, loads, sample) };
  });
}

export function summarise(state, [left, right] = compareRuns(state)) {
  return `Step ${state.step}, layer ${state.layer}. ` +
    `${nameFinding(state, left.run, left.found, " of all assignments")}. ` +
    `${nameFinding(state, right.run, right.found, "")}.`;
}

// Whole per cent, a half upwards, as Python has it.
export const perCent = (part, whole) => Math.floor((200 * part + whole) / (2 * whole));

const times = (length, make) => Array.from({ length }, (_, number) => make(number));
const sum = (values) => values.reduce((total, value) => total + value, 0);

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const FRAME_MS = 80; // from one sample to the next while it plays
const [WIDTH, LEFT, RIGHT] = [400, 42, 392];
const [STREAM, VIOLATION, LOSS] = [[18, 198], [224, 304], [330, 390]]; // top and bottom of the three pictures
const HEIGHT = 410;
const LABEL_HEIGHT = 10; // a band as high as this has room for its number
const TICKS = [0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 30, 60];

const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999"];
const PATTERNS = [
  "M0 0", "M0 6 L6 0", "M0 0 L6 6", "M3 0 V6", "M0 3 H6", "M2 3 h2 M3 2 v2", "M0 3 H6 M3 0 V6", "M0 0 L6 6 M0 6 L6 0",
];

const PAGE = `
<div class="controls">
  <label>Method <select name="method"></select></label>
  <label>Compare with <select name="compare"></select></label>
  <label>Layer <select name="layer"></select></label>
  <label class="scrub">Step <input name="step" type="range" min="0"><span aria-hidden="true"></span></label>
  <button type="button">Play</button>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<div class="picture">
  <div class="panels"></div>
  <p class="hint">Each band is an expert's share of the assignments; bands that are wide enough carry their number.
    What is left free at the top was dropped. MaxVio is the busiest load over the mean, minus 1; the dotted line is what
    fair lots would leave. Dashed: the other method.</p>
</div>
<div class="tables" hidden></div>`;

const DRAWN = ["svg", "g", "path", "rect", "text", "line", "circle", "defs", "pattern"];

function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// From a value to a place between two others, straight, by square root or by logarithm.
function scaleOf([low, high], [from, to], bend = (value) => value) {
  const [first, last] = [bend(low), bend(high)];
  return (value) => from + ((bend(value) - first) / (last - first || 1)) * (to - from);
}

const lineThrough = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;

// Colours repeat after eight experts and the patterns then move on by one, so that 64 pairs all differ.
function makePatterns(prefix, numExperts) {
  return make("defs", {}, ...times(numExperts, (expert) =>
    make("pattern", { id: `${prefix}-${expert}`, width: 6, height: 6, patternUnits: "userSpaceOnUse" },
      make("rect", { width: 6, height: 6, fill: COLOURS[expert % 8] }),
      make("path", { class: "hatch", d: PATTERNS[(expert + Math.floor(expert / 8)) % 8] }))));
}

// An expert's number where its band is widest, if it is wide enough there: in the second half, or else in the first.
function labelBand(expert, tops, x) {
  const heights = tops.map(([low, high]) => low - high);
  const late = heights.map((height, sample) => (2 * sample < heights.length - 1 ? 0 : height));
  const look = Math.max(...late) < LABEL_HEIGHT ? heights : late;
  const widest = look.lastIndexOf(Math.max(...look));
  if (heights[widest] < LABEL_HEIGHT) return [];
  const at = [Math.max(LEFT + 9, Math.min(RIGHT - 9, x[widest])), (tops[widest][0] + tops[widest][1]) / 2];
  return [make("g", { class: "label", transform: `translate(${at.map((value) => value.toFixed(1)).join(" ")})` },
    make("rect", { x: -7, y: -5, width: 14, height: 10 }), make("text", { y: 3.5 }, expert))];
}

function drawStream({ asked, num_experts }, loads, x, prefix) {
  const y = scaleOf([0, asked], [STREAM[1], STREAM[0]]);
  const below = loads.map(() => 0);
  const bands = times(num_experts, (expert) => loads.map((load, sample) => {
    const low = y(below[sample]);
    below[sample] += load[expert];
    return [low, y(below[sample])];
  }));
  const outline = (band) => lineThrough([...band.map(([low], sample) => [x[sample], low]),
    ...band.map(([, high], sample) => [x[sample], high]).reverse()]);
  const draw = (band, expert) =>
    make("path", { class: "band", fill: `url(#${prefix}-${expert})`, d: `${outline(band)}Z` });
  return [...bands.map(draw), ...bands.flatMap((band, expert) => labelBand(expert, band, x))];
}

function drawAxis(title, [top, bottom], ticks, y, name = (tick) => tick) {
  return [make("text", { class: "title", x: LEFT, y: top - 6 }, title),
    make("path", { class: "axis", d: `M${LEFT} ${top}V${bottom}H${RIGHT}` }),
    ...ticks.map((tick) => make("text", { class: "tick", x: LEFT - 4, y: y(tick) + 4 }, name(tick)))];
}

// One method and, dashed, the other, over the steps; a dot where the reader is.
function drawLines(x, y, own, other, sample) {
  const through = (values) => lineThrough(values.map((value, at) => [x[at], y(value)]));
  return [make("path", { class: "other", d: through(other) }), make("path", { class: "own", d: through(own) }),
    make("circle", { cx: x[sample], cy: y(own[sample]), r: 4 })];
}

// Ticks in a range that stand far enough apart, from the top.
function ticksIn([low, high], y, apart) {
  const free = (kept, tick) => kept.every((other) => Math.abs(y(tick) - y(other)) >= apart);
  return TICKS.filter((tick) => tick >= low && tick <= high)
    .reduceRight((kept, tick) => (free(kept, tick) ? [...kept, tick] : kept), []);
}

// The largest violation and the range of losses in all runs, so that every method is drawn on the same scales.
function rangesOf(state) {
  const violations = state.runs.flatMap((run) =>
    run.loads.flatMap((_, layer) => loadsOf(state, run, layer).map(maxViolation)));
  const losses = state.runs.flatMap((run) => run.losses);
  const highest = Math.max(0.1, state.chance, ...violations);
  return { violation: [0, highest], loss: [Math.min(...losses), Math.max(...losses)] };
}

function drawPanel(state, { run, loads, found }, other, { ranges, sample, prefix }) {
  const steps = [state.steps[0], state.steps.at(-1)];
  const place = scaleOf(steps, [LEFT, RIGHT]);
  const x = state.steps.map(place);
  const share = scaleOf([0, 1], [STREAM[1], STREAM[0]]);
  const violation = scaleOf(ranges.violation, [VIOLATION[1], VIOLATION[0]], Math.sqrt);
  const loss = scaleOf(ranges.loss, [LOSS[1], LOSS[0]], Math.log);
  const chance = state.chance < 0 ? [] : [
    make("path", { class: "chance", d: `M${LEFT} ${violation(state.chance)}H${RIGHT}` }),
    make("text", { class: "end", x: RIGHT, y: violation(state.chance) - 4 }, `chance ${state.chance.toFixed(2)}`),
  ];
  const marks = [
    ...drawAxis("share of the assignments", STREAM, [0, 0.5, 1], share, (tick) => `${100 * tick} %`),
    ...drawStream(state, loads, x, prefix),
    ...drawAxis("MaxVio (square-root scale)", VIOLATION, [0, ...ticksIn(ranges.violation, violation, 13)], violation),
    ...drawLines(x, violation, loads.map(maxViolation), other.loads.map(maxViolation), sample),
    ...chance, // last, so that its words stay readable
    ...drawAxis("training loss, nats a byte (log scale)", LOSS, ticksIn(ranges.loss, loss, 13), loss),
    ...drawLines(x, loss, run.losses, other.run.losses, sample),
    make("path", { class: "now", d: `M${x[sample]} ${STREAM[0]}V${LOSS[1]}` }),
    make("text", { class: "tick", x: LEFT + 8, y: HEIGHT - 4 }, steps[0]),
    make("text", { class: "end", x: RIGHT, y: HEIGHT - 4 }, `step ${steps[1]}`),
  ];
  const name = `${run.label}, layer ${state.layer}: share of each expert, MaxVio and loss over ${steps[1]} steps`;
  const lost = found.dropped ? `, dropped ${perCent(found.dropped, state.asked) || "under 1"} %` : "";
  return make("div", { class: "panel", role: "group", "aria-label": run.label }, make("b", {}, run.label),
    make("p", { class: "tally" }, make("b", {}, `Experts without a token: ${found.dead} of ${state.num_experts}`),
      make("span", {}, `MaxVio ${found.max_violation.toFixed(2)}, loss ${found.loss.toFixed(2)}${lost}`)),
    make("svg", { role: "img", "aria-label": name, viewBox: `0 0 ${WIDTH} ${HEIGHT}` },
      makePatterns(prefix, state.num_experts), ...marks));
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function makeTables(state, pair, sample) {
  const names = pair.map(({ run }) => run.label);
  const share = (load, expert) => `${load[expert]} (${perCent(load[expert], state.asked)} %)`;
  const experts = times(state.num_experts, (expert) =>
    [expert, ...pair.map(({ loads }) => share(loads[sample], expert))]);
  const measure = ({ run, loads }, at) => {
    const { dead, max_violation, loss } = tally(state, run, loads, at);
    return `${dead} without a token, MaxVio ${max_violation.toFixed(2)}, loss ${loss.toFixed(3)}`;
  };
  const rows = state.steps.map((step, at) => [step, ...pair.map((one) => measure(one, at))]);
  return [makeTable(`Assignments at step ${state.step}`, ["Expert", ...names], experts),
    makeTable("Over the steps", ["Step", ...names], rows)];
}

function render({ model, el }) {
  const root = make("div", { class: "collapse-and-rescue" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const [selects, scrub, play, asTable] =
    [[...root.querySelectorAll("select")], find("[name=step]"), find("button"), find(".as-table")];
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  const prefix = `expert-${Math.random().toString(36).slice(2)}`; // ids belong to the page, which may hold two of us
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let [frame, timer, ranges, drawnRuns] = [0, 0, null, null];

  // The state under the traits' names, made to fit where only one of two traits has arrived.
  function readState() {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const sample = Math.max(0, state.steps.indexOf(state.step));
    const layer = Math.min(state.layer, state.runs[0].loads.length - 1);
    return { ...state, step: state.steps[sample], layer, sample };
  }

  function fillSelects({ runs }) {
    const option = ({ name, label }) => make("option", { value: name }, label);
    const groups = () => GROUPS.map((group) => [group, runs.filter((run) => run.group === group)])
      .filter(([, some]) => some.length)
      .map(([label, some]) => make("optgroup", { label }, ...some.map(option)));
    for (const select of selects.slice(0, 2)) select.replaceChildren(...groups());
    selects[2].replaceChildren(...runs[0].loads.map((_, layer) => make("option", { value: layer }, layer)));
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const pair = compareRuns(state);
    if (drawnRuns !== state.runs) { // once: the scales are the same for all methods and steps
      fillSelects(state);
      ranges = rangesOf(state);
      drawnRuns = state.runs;
    }
    for (const select of selects) select.value = state[select.name];
    scrub.max = state.steps.length - 1;
    scrub.value = state.sample;
    scrub.setAttribute("aria-valuetext", `step ${state.step}`);
    scrub.nextElementSibling.textContent = state.step;
    play.textContent = timer ? "Pause" : calm.matches ? "Jump to the end" : "Play";
    const sentence = summarise(state, pair);
    // while it plays, a sentence a frame would drown a screen reader
    if (!timer && find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    find(".picture").hidden = asTable.checked;
    find(".tables").hidden = !asTable.checked;
    if (asTable.checked) find(".tables").replaceChildren(...makeTables(state, pair, state.sample));
    else find(".panels").replaceChildren(...pair.map((one, side) =>
      drawPanel(state, one, pair[1 - side], { ranges, sample: state.sample, prefix: `${prefix}-${side}` })));
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  function goTo(sample) { model.set("step", model.get("steps")[sample]); }

  function stop() {
    clearInterval(timer);
    timer = 0;
    model.save_changes();
    schedule();
  }

  function advance() {
    const { sample, steps } = readState();
    if (sample < steps.length - 1) goTo(sample + 1);
    if (sample >= steps.length - 2) stop();
  }

  function start() {
    const { sample, steps } = readState();
    if (calm.matches) { goTo(steps.length - 1); model.save_changes(); return; }
    if (sample === steps.length - 1) goTo(0);
    timer = setInterval(advance, FRAME_MS);
    schedule();
  }

  for (const select of selects) {
    select.addEventListener("change", () => {
      model.set(select.name, select.name === "layer" ? Number(select.value) : select.value);
      model.save_changes();
    });
  }
  scrub.addEventListener("input", () => { if (timer) stop(); goTo(Number(scrub.value)); model.save_changes(); });
  play.addEventListener("click", () => (timer ? stop() : start()));
  asTable.addEventListener("change", schedule);
  calm.addEventListener("change", schedule);
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  draw();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    calm.removeEventListener("change", schedule);
    cancelAnimationFrame(frame);
    clearInterval(timer);
    el.replaceChildren();
  };
}

export default { render };
