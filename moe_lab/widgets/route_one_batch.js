// Route one batch: a table of router logits to change, and where its tokens go.
// The first half is arithmetic without a page, the twin of route_one_batch.py; a test compares the two.

const SCORES = { softmax: "softmax", sigmoid: "sigmoid", softmax_after_top_k: "softmax after top-k" };
const TRAITS = ["logits", "labels", "num_experts", "top_k", "score", "renormalise", "temperature", "seed", "refused"];

// Number `count` of the stream `seed`, in 0..1: mulberry32.
export function uniform(seed, count) {
  const state = (seed + Math.imul(count + 1, 0x6d2b79f5)) | 0;
  let mixed = Math.imul(state ^ (state >>> 15), state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
}

// A normal number (Box and Muller). Two decimals, because logarithms differ in the last bit between machines.
export function drawLogit(seed, token, expert) {
  const count = 2 * (64 * token + expert);
  const radius = Math.sqrt(-2 * Math.log(1 - uniform(seed, count)));
  return roundLogit(radius * Math.cos(2 * Math.PI * uniform(seed, count + 1)));
}

// Cut the columns above numExperts, or draw those that are missing; the others keep their values.
export function resizeLogits(logits, seed, numExperts) {
  return logits.map((row, token) =>
    Array.from({ length: numExperts }, (_, expert) => row[expert] ?? drawLogit(seed, token, expert)));
}

export const drawLogits = (seed, tokens, numExperts) => resizeLogits(Array(tokens).fill([]), seed, numExperts);

const roundLogit = (value) => Math.floor(100 * value + 0.5) / 100;

export function changeLogit(logits, token, expert, value) {
  const changed = logits.map((row) => [...row]);
  changed[token][expert] = Math.max(-1000, Math.min(1000, roundLogit(value)));
  return changed;
}

// The experts and weights of each token, best first; equal logits in the order of the experts.
export function route({ logits, top_k, score, renormalise, temperature }) {
  return logits.map((row) => {
    const scaled = row.map((logit) => logit / temperature);
    const experts = row.map((_, expert) => expert).sort((a, b) => scaled[b] - scaled[a] || a - b).slice(0, top_k);
    const chosen = experts.map((expert) => scaled[expert]);
    const powers = (values) => values.map((value) => Math.exp(value - chosen[0])); // at most 1: no overflow
    const whole = sum(powers(score === "softmax" ? scaled : chosen));
    let weights = score === "sigmoid" ? chosen.map((value) => 1 / (1 + Math.exp(-value)))
      : powers(chosen).map((power) => power / whole);
    if (renormalise) {
      const given = sum(weights) + 1e-20; // sigmoids may all underflow
      weights = weights.map((weight) => weight / given);
    }
    return { experts, weights };
  });
}

export function loadOf(routes, numExperts) {
  const load = Array(numExperts).fill(0);
  for (const { experts } of routes) for (const expert of experts) load[expert] += 1;
  return load;
}

export function summarise(state) {
  const routes = route(state);
  const load = loadOf(routes, state.num_experts);
  const most = Math.max(...load);
  const [tokens, total] = [routes.length, sum(load)];
  const rule = SCORES[state.score] + (state.renormalise ? ", renormalised" : "");
  const first = sum(routes.map(({ weights }) => weights[0])) / tokens;
  return `${tokens} ${tokens === 1 ? "token" : "tokens"}, top-${state.top_k} of ${state.num_experts} experts ` +
    `by ${rule}: busiest expert ${load.indexOf(most)} has ${most} of ${total} assignments, ` +
    `max over mean ${twoDecimals((most * state.num_experts) / total)}; ${nameIdle(load)}. ` +
    `First choices weigh ${twoDecimals(first)} on average.`;
}

export function nameIdle(load) {
  const idle = load.flatMap((count, expert) => (count ? [] : [expert]));
  if (!idle.length) return "every expert has some";
  if (idle.length > 4) return `${idle.length} experts have none`;
  if (idle.length === 1) return `expert ${idle[0]} has none`;
  return `experts ${idle.slice(0, -1).join(", ")} and ${idle.at(-1)} have none`;
}

// Like Python's :.2f, which rounds an exact tie (an odd number of eighths) to the even digit; toFixed rounds it up.
export function twoDecimals(value) {
  const tie = Number.isInteger(8 * value) && !Number.isInteger(4 * value);
  return (tie ? Math.round(50 * value) / 50 : value).toFixed(2);
}

// Blue above zero and orange below, paler near it; black reads at 4.5:1 or better on all but the darkest blue.
export function cellColour(logit, largest) {
  const percent = Math.min(100, (100 * Math.abs(logit)) / largest);
  const fill = `color-mix(in srgb, ${logit < 0 ? "#e69f00" : "#0072b2"} ${percent}%, #fff)`;
  return { fill, ink: logit > 0 && percent > 95 ? "#fff" : "#000" };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";

const OPTIONS = Object.entries(SCORES).map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
const VALUE = '<span aria-hidden="true"></span>'; // the number beside a slider, which says its own aloud
const PAGE = `
<div class="controls">
  <label>Experts <input name="num_experts" type="range" min="2" max="64">${VALUE}</label>
  <label>Top-k <input name="top_k" type="range" min="1" max="8">${VALUE}</label>
  <label>Temperature <input name="temperature" type="range" min="0.05" max="10" step="0.05">${VALUE}</label>
  <label>Score <select name="score">${OPTIONS}</select></label>
  <label><input name="renormalise" type="checkbox"> Renormalise</label>
  <label>Seed <input name="seed" type="number" min="0" max="2147483647"></label>
  <button type="button">New sample</button>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<div class="picture">
  <div class="scroll"><table class="grid" role="grid" aria-label="Router logits, tokens by experts"></table></div>
  <div class="flow">
    <svg width="230" role="img" aria-label="Ribbons from each token to its experts, as thick as their weights"></svg>
    <div class="bars" role="img" aria-label="Bars of assignments for each expert, and their mean"></div>
  </div>
</div>
<div class="tables scroll" hidden></div>
<div class="controls"><label><span class="cell-name"></span> <input class="logit" type="number" step="0.1"></label>
  <span class="goes-to"></span></div>
<p class="hint">Choose a cell with the arrow keys, then + and − change its logit by 0.1; or drag a cell up and down.
  Blue is above zero, orange below. A frame and a digit mark the choices of a token, 1 the first.</p>`;

function make(tag, attributes = {}, ...children) {
  const space = ["path", "text"].includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const node = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const nameToken = (state, token) => state.labels[token] ?? `token ${token}`;
const shorten = (name) => ([...name].length > 10 ? `${[...name].slice(0, 9).join("")}…` : name);
const nameChoices = ({ experts, weights }) =>
  experts.map((expert, slot) => `expert ${expert} (${twoDecimals(weights[slot])})`);

// Colours repeat after eight experts and the patterns then move on by one, so that 64 pairs all differ.
const swatch = (expert) => `colour-${expert % 8} pattern-${(expert + Math.floor(expert / 8)) % 8}`;

function buildGrid(grid, state) {
  const size = Math.max(12, Math.min(46, Math.floor(400 / state.num_experts)));
  grid.className = size < 42 ? "grid narrow" : "grid";
  grid.style.setProperty("--cell", `${size}px`);
  const heads = state.logits[0].map((_, expert) =>
    make("th", { scope: "col" }, expert, make("i", { class: swatch(expert) })));
  const rows = state.logits.map((row, token) => {
    const name = nameToken(state, token);
    const cells = row.map((_, expert) =>
      make("td", { role: "gridcell", "data-token": token, "data-expert": expert, [QUIET]: "" }));
    return make("tr", {}, make("th", { scope: "row", title: name }, name), ...cells);
  });
  const head = make("tr", {}, make("th", { scope: "col" }, "Token"), ...heads);
  grid.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

function drawGrid(grid, state, routes, chosen) {
  const largest = Math.max(3, ...state.logits.flat().map(Math.abs));
  const narrow = grid.classList.contains("narrow");
  for (const cell of grid.tBodies[0].querySelectorAll("td")) {
    const [token, expert] = [Number(cell.dataset.token), Number(cell.dataset.expert)];
    const value = twoDecimals(state.logits[token][expert]);
    const slot = routes[token].experts.indexOf(expert);
    const { fill, ink } = cellColour(state.logits[token][expert], largest);
    const height = 50 + (50 * state.logits[token][expert]) / largest; // a narrow cell has no room for the number
    const level = `linear-gradient(to top, ${fill} calc(${height}% - 1px), #444 0 ${height}%, #fff 0)`;
    const choice = slot < 0 ? "" : `, choice ${slot + 1}, weight ${twoDecimals(routes[token].weights[slot])}`;
    cell.className = slot < 0 ? "" : "choice";
    cell.style.cssText = `background:${narrow && slot < 0 ? level : fill};color:${ink}`;
    cell.textContent = narrow ? "" : value.slice(0, 5).replace(/\.$/, "");
    cell.tabIndex = token === chosen.token && expert === chosen.expert ? 0 : -1;
    cell.setAttribute("aria-label", `${nameToken(state, token)}, expert ${expert}, logit ${value}${choice}`);
    cell.dataset.rank = slot + 1;
  }
}

function drawRibbons(svg, state, routes, load, rowHeight, chosen) {
  const tokenHeight = (rowHeight * load.length) / routes.length;
  const scale = Math.min(0.8 * tokenHeight, 36) / Math.max(1, ...routes.map(({ weights }) => sum(weights)));
  const arrived = load.map(() => 0);
  svg.replaceChildren();
  svg.setAttribute("height", rowHeight * load.length);
  routes.forEach(({ experts, weights }, token) => {
    const middle = (token + 0.5) * tokenHeight;
    let top = middle - (scale * sum(weights)) / 2;
    svg.append(make("text", { x: 66, y: middle + 4 }, shorten(nameToken(state, token))));
    experts.forEach((expert, slot) => {
      const start = top + (scale * weights[slot]) / 2;
      const end = rowHeight * (expert + 0.15 + (0.7 * (arrived[expert]++ + 0.5)) / load[expert]);
      const look = `colour-${expert % 8}${token === chosen.token ? " strong" : ""}`;
      const line = `M70 ${start} C150 ${start} 150 ${end} 230 ${end}`;
      svg.append(make("path", { class: look, d: line, "stroke-width": Math.max(1, scale * weights[slot]) }));
      top += scale * weights[slot];
    });
  });
}

function drawBars(bars, load, rowHeight) {
  const unit = 110 / Math.max(...load);
  const mean = sum(load) / load.length;
  bars.replaceChildren(...load.map((count, expert) => make("div", { style: `height:${rowHeight}px` },
    make("b", {}, expert), make("i", { class: swatch(expert), style: `width:${unit * count}px` }), count)));
  bars.append(make("p", { style: `left:${26 + unit * mean}px` }, make("span", {}, `mean ${twoDecimals(mean)}`)));
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function render({ model, el }) {
  const root = make("div", { class: "route-one-batch" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const [grid, logit, asTable] = [find(".grid"), find(".logit"), find(".as-table")];
  const fields = [...root.querySelectorAll("[name]")];
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  const chosen = { token: 0, expert: 0 };
  let [frame, drag, built] = [0, null, ""];

  // The state under the traits' names, made to fit where only one of two traits has arrived.
  function readState() {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const logits = resizeLogits(state.logits, state.seed, state.num_experts);
    return { ...state, logits, top_k: Math.min(state.top_k, state.num_experts) };
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const [routes, sentence] = [route(state), summarise(state)];
    const load = loadOf(routes, state.num_experts);
    const rowHeight = Math.max(12, (26 * Math.max(8, routes.length)) / load.length);
    chosen.token = Math.min(chosen.token, routes.length - 1);
    chosen.expert = Math.min(chosen.expert, load.length - 1);
    find("[name=top_k]").max = Math.min(8, load.length);
    for (const field of [...fields, logit]) {
      const value = field === logit ? state.logits[chosen.token][chosen.expert] : state[field.name];
      if (field.type === "checkbox") field.checked = value;
      else if (field.value !== String(value)) field.value = value;
      if (field.type === "range") field.nextElementSibling.textContent = value;
    }
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    find(".picture").hidden = asTable.checked;
    find(".tables").hidden = !asTable.checked;
    const shape = JSON.stringify([routes.length, load.length, state.labels]);
    if (shape !== built) buildGrid(grid, state); // once only, so that a cell keeps the focus and a drag goes on
    built = shape;
    drawGrid(grid, state, routes, chosen);
    drawRibbons(find("svg"), state, routes, load, rowHeight, chosen);
    drawBars(find(".bars"), load, rowHeight);
    const choices = routes[0].experts.map((_, slot) => `Choice ${slot + 1}`);
    const rows = routes.map((one, token) => [nameToken(state, token), ...nameChoices(one)]);
    find(".tables").replaceChildren(makeTable("Experts and weights", ["Token", ...choices], rows),
      makeTable("Load", ["Expert", "Assignments"], [...load.entries()]));
    const [name, one] = [nameToken(state, chosen.token), routes[chosen.token]];
    find(".cell-name").textContent = `Logit of ${name}, expert ${chosen.expert}`;
    find(".goes-to").textContent = `${name} goes to ${nameChoices(one).join(", ")}; ` +
      `its weights add up to ${twoDecimals(sum(one.weights))}.`;
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  function setLogit(value) {
    update({ logits: changeLogit(readState().logits, chosen.token, chosen.expert, value) });
  }

  function setField({ name, type, checked, value }) {
    const { logits, seed, num_experts, top_k } = readState();
    const number = Number(value);
    if (name === "score") update({ score: value });
    else if (type === "checkbox") update({ [name]: checked });
    else if (name === "num_experts")
      update({ num_experts: number, top_k: Math.min(top_k, number), logits: resizeLogits(logits, seed, number) });
    else if (name !== "seed") update({ [name]: number });
    else if (value !== "" && Number.isInteger(number) && number >= 0 && number < 2 ** 31)
      update({ seed: number, logits: drawLogits(number, logits.length, num_experts) });
  }

  function choose(token, expert) {
    const { logits, num_experts } = readState();
    chosen.token = Math.max(0, Math.min(logits.length - 1, token));
    chosen.expert = Math.max(0, Math.min(num_experts - 1, expert));
    grid.tBodies[0].rows[chosen.token].cells[chosen.expert + 1].focus();
    schedule();
  }

  const steps = {
    ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -64], End: [0, 64],
  };
  const changes = { "+": 0.1, "=": 0.1, "-": -0.1, "−": -0.1 };
  grid.addEventListener("keydown", (event) => {
    const value = readState().logits[chosen.token][chosen.expert];
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own
    if (event.key in steps) choose(chosen.token + steps[event.key][0], chosen.expert + steps[event.key][1]);
    else if (event.key in changes) setLogit(value + changes[event.key]);
    else return;
    event.preventDefault();
  });
  grid.addEventListener("pointerdown", (event) => {
    const cell = event.target.closest("[data-token]");
    if (!cell) return;
    choose(Number(cell.dataset.token), Number(cell.dataset.expert));
    drag = { from: event.clientY, value: readState().logits[chosen.token][chosen.expert] };
    grid.setPointerCapture(event.pointerId);
  });
  grid.addEventListener("pointermove", (event) => {
    if (drag) setLogit(drag.value + (drag.from - event.clientY) / 40);
  });
  for (const end of ["pointerup", "pointercancel"]) grid.addEventListener(end, () => { drag = null; });
  for (const field of fields) field.addEventListener("input", () => setField(field));
  logit.addEventListener("input", () => { if (logit.value !== "") setLogit(Number(logit.value)); });
  asTable.addEventListener("change", schedule);
  const nextSeed = () => setField({ name: "seed", value: (model.get("seed") + 1) % 2 ** 31 });
  find("button").addEventListener("click", nextSeed);
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  draw();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    cancelAnimationFrame(frame);
    el.replaceChildren();
  };
}

export default { render };
