// Race: a dense model and a MoE of equal FLOPs a step, trained side by side while the reader watches.
// The first half is arithmetic without a page, the twin of race.py; a test compares the two.

const TRAITS = ["recorded", "live", "choices", "shorter", "axis", "wish", "heard", "refused"];
const NAMES = { dense: "the dense model", moe: "the MoE" };
const GOING = ["starting", "running", "playing"];
const [STEP, LOSS, SECONDS] = [0, 1, 2]; // of a point of a curve

// A race between two: the dense arm, and the MoE whose steps are nearest to 1/shorter of the dense one's.
export function pick(race, shorter) {
  if (!race.arms || race.arms.length < 3) return race;
  const [dense, ...others] = race.arms;
  const away = ({ steps }) => Math.abs(Math.log((steps * shorter) / dense.steps));
  return { ...race, arms: [dense, others.reduce((best, arm) => (away(arm) < away(best) ? arm : best))] };
}

// What a recorded race looked like when its arms had trained for so many seconds each.
export function cut(race, seconds) {
  const arms = race.arms.map((arm) => {
    if (arm.seconds <= seconds) return arm;
    const seen = (points) => points.filter((point) => point[SECONDS] <= seconds);
    const done = Math.floor((arm.steps * seconds) / arm.seconds);
    return { ...arm, done, seconds, busiest: null, final: null, curve: seen(arm.curve), validation: seen(arm.validation) };
  });
  return { ...race, arms, status: seconds < lengthOf(race) ? "playing" : "recorded" };
}

export const lengthOf = (race) => Math.max(...race.arms.map((arm) => arm.seconds));

// Training loss of an arm at the last point of its curve up to a step or second, null before the first.
const lossAt = ({ curve }, column, limit) => curve.findLast((point) => point[column] <= limit)?.[LOSS] ?? null;

// Both arms' training losses after equal seconds and after equal steps, as far as both have come.
export function compare({ arms }) {
  return [["seconds", SECONDS, "seconds"], ["steps", STEP, "done"]].flatMap(([axis, column, field]) => {
    const far = Math.min(...arms.map((arm) => arm[field]));
    const losses = arms.map((arm) => lossAt(arm, column, far));
    return losses.includes(null) ? [] : [{ axis, far, losses }];
  });
}

export function sayRace(race) {
  if (!race.arms) return "No race was run here yet, and there is no recorded one.";
  const { status, arms } = race;
  if (status === "failed") return `The race failed: ${race.error}`;
  if (!arms.length) return status === "starting" ? "Both models are being made." : "Stopped before the first step.";
  if (arms.every(({ final }) => final !== null)) {
    return `${["recorded", "playing"].includes(status) ? "Recorded" : "Both have finished"}. ${sayEnd(arms)}`;
  }
  const places = arms.map((arm) => `${NAMES[arm.name]} at step ${withCommas(arm.done)} of ${withCommas(arm.steps)}` +
    (arm.curve.length ? ` with loss ${sayLoss(arm.curve.at(-1)[LOSS])}` : ""));
  const found = compare(race).map(({ axis, far, losses }) =>
    `after ${axis === "seconds" ? saySpan(far) : manySteps(far)} each ${lead(losses)}`);
  return `${sayStatus(race)}: ${places.join(", ")}.${found.length ? ` ${capital(found.join(", "))}.` : ""}`;
}

function sayStatus(race) {
  const { status, wall_s, limit_s } = race;
  if (status === "playing") return `Recorded, at ${saySpan(lengthOf(race))}`;
  if (GOING.includes(status)) return `Running, ${saySpan(wall_s)} of at most ${saySpan(limit_s)}`;
  if (status === "time is up") return `Time is up after ${saySpan(wall_s)}, before the ends of the schedules`;
  return `Stopped after ${saySpan(wall_s)}`;
}

function sayEnd(arms) {
  const [dense, moe] = arms;
  const ends = arms.map((arm) =>
    `${NAMES[arm.name]} ${sayLoss(arm.final)} after ${manySteps(arm.steps)} in ${saySpan(arm.seconds)}`);
  return `On held-out text, at the ends of their schedules: ${ends.join(", ")}. ` +
    `${capital(lead(arms.map(({ final }) => final)))} with ${threeDigits(moe.steps / dense.steps)} times the steps and ` +
    `${threeDigits(moe.seconds / dense.seconds)} times the seconds, ` +
    `at ${threeDigits(rateOf(moe) / rateOf(dense))} times the examples a second.`;
}

// Examples a second, 0 before the first step.
export const rateOf = ({ batch, done, seconds }) => (seconds ? (batch * done) / seconds : 0);

// Who leads by what, of the losses as they are shown.
export function lead(losses) {
  const [dense, moe] = losses.map(hundredths);
  if (dense === moe) return "neither leads";
  return `${NAMES[moe < dense ? "moe" : "dense"]} leads by ${sayLoss(Math.abs(dense - moe) / 100)} nats a byte`;
}

const hundredths = (value) => Math.floor(value * 100 + 0.5);

export function sayLoss(loss) {
  const all = hundredths(loss);
  return `${Math.floor(all / 100)}.${String(all % 100).padStart(2, "0")}`;
}

export function saySpan(seconds) {
  if (seconds < 10) {
    const tenths = Math.floor(seconds * 10 + 0.5);
    return `${Math.floor(tenths / 10)}.${tenths % 10} s`;
  }
  const [whole, minutes] = [Math.floor(seconds + 0.5), Math.floor(seconds / 60 + 0.5)];
  return seconds < 300 ? `${whole} s` : `${withCommas(minutes)} min`;
}

// A number by its first three digits, a half upwards.
export const threeDigits = (value) => withCommas(Number(value.toPrecision(3)));

const withCommas = (number) => {
  const [whole, rest] = String(number).split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest ? `.${rest}` : "");
};
const manySteps = (steps) => `${withCommas(steps)} ${steps === 1 ? "step" : "steps"}`;
const capital = (sentence) => sentence.slice(0, 1).toUpperCase() + sentence.slice(1);

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const ANSWER_MS = 3000; // without an answer until then there is no kernel, or it is busy
const [FRAME_MS, PLAY_MS] = [100, 20_000]; // a recorded race is played in twenty seconds
const PARTS = 4; // a live race is read out once a quarter
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [700, 340, 46, 600, 14, 296];
const LOSS_TICKS = [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8];
const HIGHEST = 6; // nats a byte; an untrained model has log(256) = 5.5
const SHARES = { 1: "as many as dense", 2: "half of dense", 4: "a quarter", 7: "a seventh", 10: "a tenth" };

const PAGE = `
<div class="controls">
  <button type="button" class="go">Start</button>
  <button type="button" class="over">Start over</button>
  <label>Steps of the MoE <select name="shorter"></select></label>
  <label>Against <select name="axis"><option>steps</option><option>seconds</option></select></label>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<p class="notice" role="status" hidden></p>
<p class="summary"></p>
<p class="refused" role="alert"></p>
<div class="said" aria-live="polite"></div>
<div class="along">
  <label class="dense">Dense <progress></progress> <span aria-hidden="true"></span></label>
  <label class="moe">MoE <progress></progress> <span aria-hidden="true"></span></label>
</div>
<div class="picture">
  <div class="chart"></div>
  <div class="legend"></div>
  <p class="hint">A line is the training loss, each point a mean over a hundredth of the steps; hollow marks are losses on
    held-out text. Each arm's learning rate falls over its own schedule, so a loss on the way says little: compare the
    ends.</p>
</div>
<div class="tables" hidden></div>
<div class="tables figures"></div>
<p class="source"></p>`;

const DRAWN = ["svg", "g", "path", "rect", "text", "circle"];

function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const at = (...numbers) => numbers.map((number) => number.toFixed(1)).join(" ");

// Round numbers from 0 to a limit, at most seven of them.
export function ticksUpTo(limit) {
  const power = 10 ** Math.floor(Math.log10(limit));
  const step = [0.1, 0.2, 0.5, 1, 2].map((part) => part * power).find((one) => limit / one <= 6.001);
  return Array.from({ length: Math.floor(limit / step + 1e-9) + 1 }, (_, number) => Number((number * step).toPrecision(3)));
}

// The axes of a chart: steps of the longer schedule, or seconds so far; losses down to the tick below all of them.
export function scalesOf({ arms }, axis) {
  const farthest = Math.max(...arms.map((arm) => (axis === "steps" ? arm.steps : arm.seconds)));
  const longest = axis === "steps" ? farthest : Math.max(10, farthest);
  const losses = arms.flatMap((arm) => [...arm.curve, ...arm.validation].map((point) => point[LOSS]));
  const least = Math.min(2.5, ...losses, ...arms.flatMap(({ final }) => final ?? []));
  const low = LOSS_TICKS.findLast((tick) => tick < least) ?? least / 2;
  const bend = (loss) => Math.log(Math.max(low, Math.min(HIGHEST, loss)) / low) / Math.log(HIGHEST / low);
  return { longest, low, x: (value) => LEFT + (value / longest) * (RIGHT - LEFT), y: (loss) => BOTTOM - bend(loss) * (BOTTOM - TOP) };
}

function drawAxes({ longest, low, x, y }, axis) {
  const [across, up] = [ticksUpTo(longest), LOSS_TICKS.filter((tick) => tick >= low && tick <= HIGHEST)];
  return [make("path", { class: "grid", d: up.map((tick) => `M${at(LEFT, y(tick))}H${RIGHT}`).join("") }),
    make("path", { class: "axis", d: `M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}` }),
    ...across.map((tick) => make("text", { class: "middle", x: x(tick).toFixed(1), y: BOTTOM + 16 }, withCommas(tick))),
    ...up.map((tick) => make("text", { class: "end", x: LEFT - 5, y: (y(tick) + 4).toFixed(1) }, tick)),
    make("text", { class: "middle", x: (LEFT + RIGHT) / 2, y: HEIGHT - 8 },
      axis === "steps" ? "steps" : "seconds of its own training"),
    make("text", { class: "middle", transform: `translate(11 ${(TOP + BOTTOM) / 2}) rotate(-90)` },
      "loss, nats a byte (log scale)")];
}

// They differ without colour: squares and dashes for dense, discs and a whole line for the MoE.
const SYMBOLS = {
  dense: (radius, name) => make("rect", { class: name, x: -radius, y: -radius, width: 2 * radius, height: 2 * radius }),
  moe: (radius, name) => make("circle", { class: name, r: 1.15 * radius }),
};

const place = (x, y, node) => make("g", { transform: `translate(${at(x, y)})` }, node);

function drawArm(arm, axis, { x, y }, shift) {
  const across = (point) => x(point[axis === "steps" ? STEP : SECONDS]);
  const points = arm.curve.map((point) => at(across(point), y(point[LOSS])));
  const judged = arm.validation.map((point) => place(across(point), y(point[LOSS]), SYMBOLS[arm.name](2.3, "judged")));
  const last = arm.curve.at(-1);
  const head = last ? [place(across(last), y(last[LOSS]), SYMBOLS[arm.name](4.5, "head")),
    make("text", { class: "name", x: (across(last) + 9).toFixed(1), y: (y(last[LOSS]) + 4 + shift).toFixed(1) },
      `${arm.name === "moe" ? "MoE" : "dense"} ${sayLoss(last[LOSS])}`)] : [];
  return make("g", { class: arm.name }, make("path", { class: "curve", d: points.length ? `M${points.join("L")}` : "M0 0" }),
    ...judged, ...head);
}

// How far each arm's label moves so that the two do not lie on each other.
export function shiftsOf(arms, axis, { x, y }) {
  const ends = arms.map((arm) => arm.curve.at(-1));
  if (ends.includes(undefined)) return [0, 0];
  const [left, top] = [ends.map((point) => x(point[axis === "steps" ? STEP : SECONDS])), ends.map((point) => y(point[LOSS]))];
  const close = Math.abs(left[0] - left[1]) < 90 && Math.abs(top[0] - top[1]) < 15;
  if (!close) return [0, 0];
  const push = (15 - Math.abs(top[0] - top[1])) / 2;
  return top[0] < top[1] ? [-push, push] : [push, -push];
}

function nameChart(race, axis) {
  const parts = race.arms.filter(({ curve }) => curve.length).map((arm) => {
    const [first, last] = [arm.curve[0], arm.curve.at(-1)];
    const place = axis === "steps" ? manySteps(last[STEP]) : saySpan(last[SECONDS]);
    return `${NAMES[arm.name]} from ${sayLoss(first[LOSS])} to ${sayLoss(last[LOSS])} after ${place}`;
  });
  return `Training loss against ${axis}: ${parts.join(", ") || "no points yet"}`;
}

function drawChart(race, axis, scales) {
  const shifts = shiftsOf(race.arms, axis, scales);
  return make("svg", { role: "img", "aria-label": nameChart(race, axis), viewBox: `0 0 ${WIDTH} ${HEIGHT}` },
    ...drawAxes(scales, axis), ...race.arms.map((arm, side) => drawArm(arm, axis, scales, shifts[side])));
}

function drawLegend(arms) {
  const line = (arm) => make("svg", { "aria-hidden": "true", viewBox: "0 -8 36 16", width: 36, height: 16 },
    make("g", { class: arm.name }, make("path", { class: "curve", d: "M0 0H36" }), place(18, 0, SYMBOLS[arm.name](4.5, "head"))));
  return arms.map((arm) => make("span", {}, line(arm), arm.name === "moe" ? `MoE, ${arm.experts} experts, top-1` : "dense"));
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

export function sayFlops(flops) {
  const [unit, size] = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]].find(([, one]) => flops >= one) ?? ["", 1];
  return `${threeDigits(flops / size)} ${unit}FLOP`;
}

function makeFigures(arms) {
  const row = (name, tell) => [name, ...arms.map(tell)];
  const judged = (arm) => arm.final ?? arm.validation.at(-1)?.[LOSS];
  return makeTable("Figures", ["", "Dense", "MoE"], [
    row("FLOPs a step", ({ flops }) => sayFlops(flops)),
    row("of these, router", ({ flops, router_flops }) =>
      (router_flops ? `${sayFlops(router_flops)} (${threeDigits((100 * router_flops) / flops)} %)` : "none")),
    row("Parameters", ({ params }) => withCommas(params)),
    row("Examples a second", (arm) => (arm.done ? threeDigits(rateOf(arm)) : "–")),
    row("Seconds of training", ({ seconds }) => saySpan(seconds)),
    row("Training loss", ({ curve }) => (curve.length ? sayLoss(curve.at(-1)[LOSS]) : "–")),
    row("Held-out loss", (arm) => (judged(arm) === undefined ? "–" : sayLoss(judged(arm)) +
      (arm.final === null ? ` at step ${withCommas(arm.validation.at(-1)[STEP])}` : " at the end"))),
    row("Busiest expert", ({ name, busiest }) =>
      (name === "dense" ? "no experts" : busiest === null ? "–" : `${threeDigits(busiest)} times the mean load`)),
  ]);
}

// A tenth of each curve's points, so that the table can be read through.
function makeCurves(arms) {
  return arms.map((arm) => {
    const every = Math.max(1, Math.floor(arm.curve.length / 10));
    const rows = arm.curve.filter((_, number) => (number + 1) % every === 0)
      .map((point) => [withCommas(point[STEP]), saySpan(point[SECONDS]), sayLoss(point[LOSS])]);
    return makeTable(`Training loss, ${arm.name === "moe" ? "MoE" : "dense"}`, ["Step", "Seconds", "Loss"], rows);
  });
}

function render({ model, el }) {
  const root = make("div", { class: "moe-race" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const [go, over, shorter, axis, asTable] =
    [".go", ".over", "[name=shorter]", "[name=axis]", ".as-table"].map(find);
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let [frame, answer, timer] = [0, 0, 0];
  let [asking, alone] = [false, false]; // a wish is out; no kernel has answered one
  let [clock, spoken] = [null, ""]; // how far the recorded race is played, in seconds; what was read out last

  const readState = () => Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));

  // What there is to see: the live race, or the recorded one as far as it is played.
  const isLive = ({ live, recorded }) => Boolean(live.status) && !(alone && recorded.arms);
  function raceOf(state) {
    if (isLive(state)) return state.live;
    const race = pick(state.recorded, state.shorter);
    return race.arms && clock !== null ? cut(race, clock) : race;
  }

  const isGoing = (race) => (alone ? Boolean(timer) : Boolean(race.limit_s) && GOING.includes(race.status));

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const race = raceOf(state);
    drawControls(state, race);
    drawNotice(state, race);
    const sentence = sayRace(race);
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    readOut(race, sentence);
    const arms = race.arms ?? [];
    for (const node of root.querySelectorAll(".along, .picture, .tables")) node.hidden = !arms.length;
    find(".source").textContent = race.source ?? "";
    if (!arms.length) return;
    find(".picture").hidden = asTable.checked;
    find(".tables").hidden = !asTable.checked;
    drawProgress(arms);
    find(".figures").replaceChildren(makeFigures(arms));
    if (asTable.checked) { find(".tables").replaceChildren(...makeCurves(arms)); return; }
    const whole = isLive(state) ? race : pick(state.recorded, state.shorter); // a recorded race keeps its scales
    find(".chart").replaceChildren(drawChart(race, state.axis, scalesOf(whole, state.axis)));
    find(".legend").replaceChildren(...drawLegend(arms));
  }

  function drawControls(state, race) {
    const going = isGoing(race);
    const begun = race.status === "stopped" || (!going && race.status === "playing");
    go.textContent = going ? "Stop" : begun ? "Go on" : "Start";
    over.disabled = !going && !begun && !(race.status === "time is up" || race.status === "finished");
    if (shorter.options.length !== state.choices.length) {
      shorter.replaceChildren(...state.choices.map((one) => make("option", { value: one }, SHARES[one] ?? `1/${one}`)));
    }
    shorter.value = state.shorter;
    shorter.disabled = going;
    axis.value = state.axis;
  }

  function drawNotice(state, race) {
    const nearest = race.arms?.length && race.arms[1].steps !== Math.floor(race.arms[0].steps / state.shorter)
      ? " It has no MoE with so many steps; the nearest one is shown." : "";
    const recorded = `This is a recorded race.${nearest}`;
    const words = asking ? "Asking the kernel …"
      : alone ? `No kernel answers, so nothing is trained here. ${race.arms ? recorded : ""}`
        : race.status === "recorded" ? `${recorded} Start trains both models here.` : "";
    find(".notice").hidden = !words;
    if (find(".notice").textContent !== words) find(".notice").textContent = words;
  }

  function drawProgress(arms) {
    for (const arm of arms) {
      const bar = find(`.along .${arm.name} progress`);
      [bar.max, bar.value] = [arm.steps, arm.done];
      bar.nextElementSibling.textContent = `${withCommas(arm.done)} of ${withCommas(arm.steps)}`;
    }
  }

  // Read out when a race starts or ends, and once a quarter on the way; a sentence a frame would drown everything else.
  function readOut(race, sentence) {
    const part = GOING.includes(race.status) && race.arms.length
      ? Math.floor(PARTS * Math.max(...race.arms.map(({ done, steps }) => done / steps))) : 0;
    const key = `${race.status} ${part}`;
    if (spoken && key !== spoken) find(".said").textContent = sentence;
    spoken = key;
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  function wish(verb) {
    const number = (model.get("wish").number ?? 0) + 1;
    model.set("wish", { number, verb });
    model.save_changes();
    clearTimeout(answer);
    answer = setTimeout(() => goAlone(verb), ANSWER_MS);
    asking = true;
    schedule();
  }

  // A kernel has granted the wish: what it trains is what there is to see.
  function hear() {
    if (model.get("heard") !== model.get("wish").number) return;
    clearTimeout(answer);
    pause();
    [asking, alone, clock] = [false, false, null];
    schedule();
  }

  function goAlone(verb) {
    [asking, alone] = [false, true];
    if (model.get("recorded").arms && verb !== "stop") play(0);
    schedule();
  }

  const lengthNow = () => lengthOf(pick(model.get("recorded"), model.get("shorter")));

  function play(from) {
    pause();
    clock = calm.matches ? lengthNow() : from;
    if (!calm.matches) timer = setInterval(advance, FRAME_MS);
    schedule();
  }

  function pause() {
    clearInterval(timer);
    timer = 0;
    schedule();
  }

  function advance() {
    clock = Math.min(lengthNow(), clock + (lengthNow() * FRAME_MS) / PLAY_MS);
    if (clock === lengthNow()) pause();
    schedule();
  }

  function press() {
    const race = raceOf(readState());
    if (!alone || !model.get("recorded").arms) wish(isGoing(race) ? "stop" : "start");
    else if (timer) pause();
    else play(race.status === "playing" ? clock : 0);
  }

  go.addEventListener("click", press);
  over.addEventListener("click", () => (alone && model.get("recorded").arms ? play(0) : wish("start over")));
  shorter.addEventListener("change", () => {
    if (alone) clock = null; // another race, shown whole
    model.set("shorter", Number(shorter.value));
    model.save_changes();
  });
  axis.addEventListener("change", () => { model.set("axis", axis.value); model.save_changes(); });
  asTable.addEventListener("change", schedule);
  calm.addEventListener("change", schedule);
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  model.on("change:heard", hear);
  draw();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    model.off("change:heard", hear);
    calm.removeEventListener("change", schedule);
    cancelAnimationFrame(frame);
    clearTimeout(answer);
    clearInterval(timer);
    el.replaceChildren();
  };
}

export default { render };
