// Route one batch: a table of router logits to change, and where its tokens go.
// The first half is arithmetic without a page, the twin of route_one_batch.py; a test compares the two.

const SCORES = { softmax: "softmax", sigmoid: "sigmoid", softmax_after_top_k: "softmax after top-k" };
const TRAITS = ["logits", "labels", "num_experts", "top_k", "score", "renormalise", "temperature", "seed"];

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
  changed[token][expert] = Math.max(-20, Math.min(20, roundLogit(value)));
  return changed;
}

// The experts and weights of each token, best first; equal logits in the order of the experts.
export function route({ logits, top_k, score, renormalise, temperature }) {
  return logits.map((row) => {
    const scaled = row.map((logit) => logit / temperature);
    const experts = row.map((_, expert) => expert).sort((a, b) => scaled[b] - scaled[a] || a - b).slice(0, top_k);
    const chosen = experts.map((expert) => scaled[expert]);
    const powers = (values) => values.map((value) => Math.exp(value - chosen[0])); // the highest becomes 1: no overflow
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

// Blue above zero and orange below, paler near it, with whichever of black and white reads better on top.
export function cellColour(logit, largest) {
  const part = Math.min(1, Math.abs(logit) / largest);
  const end = logit < 0 ? [230, 159, 0] : [0, 114, 178];
  const fill = end.map((channel) => Math.round(255 + (channel - 255) * part));
  const [red, green, blue] = fill.map((channel) => (channel / 255) ** 2.2);
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return { fill: `rgb(${fill})`, ink: luminance > 0.179 ? "#000" : "#fff" };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

// ---------------------------------------------------------------- the page

const HINT = "Choose a cell with the arrow keys, then + and − change its logit by 0.1; or drag a cell up and down. " +
  "Blue is above zero, orange below; a frame and a digit mark the choices, 1 the first.";

// JupyterLab takes arrow keys for itself unless the focused element carries this attribute.
const QUIET = { "data-lm-suppress-shortcuts": "true" };

function make(tag, attributes = {}, ...children) {
  const node = tag === "svg" || tag === "path" || tag === "text"
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", { class: "numbers" }, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

// Colours repeat after eight experts and the patterns then move on by one, so that 64 pairs all differ.
const swatch = (expert) => `colour-${expert % 8} pattern-${(expert + Math.floor(expert / 8)) % 8}`;

// Ribbons from tokens (left) to experts (right), as thick as their weight.
function drawRibbons(svg, state, routes, rowHeight, chosenToken) {
  const tokenHeight = (rowHeight * state.num_experts) / routes.length;
  const scale = Math.min(0.8 * tokenHeight, 22) / Math.max(1, ...routes.map(({ weights }) => sum(weights)));
  const load = loadOf(routes, state.num_experts);
  const arrived = Array(state.num_experts).fill(0);
  svg.replaceChildren();
  routes.forEach(({ experts, weights }, token) => {
    let top = (token + 0.5) * tokenHeight - (scale * sum(weights)) / 2;
    svg.append(make("text", { x: 66, y: (token + 0.5) * tokenHeight + 4 }, nameToken(state, token)));
    experts.forEach((expert, slot) => {
      const start = top + (scale * weights[slot]) / 2;
      const end = rowHeight * (expert + 0.15 + (0.7 * (arrived[expert]++ + 0.5)) / load[expert]);
      svg.append(make("path", {
        class: `ribbon colour-${expert % 8}${token === chosenToken ? " strong" : ""}`,
        "stroke-width": Math.max(0.5, scale * weights[slot]),
        d: `M70 ${start} C150 ${start} 150 ${end} 230 ${end}`,
      }));
      top += scale * weights[slot];
    });
  });
  svg.setAttribute("height", rowHeight * state.num_experts);
}

// A bar for each expert and a dashed line at the mean load.
function drawBars(bars, load, rowHeight) {
  const longest = Math.max(...load);
  const mean = sum(load) / load.length;
  bars.replaceChildren(...load.map((count, expert) => {
    const bar = make("span", { class: `bar ${swatch(expert)}`, style: `width:${(110 * count) / longest}px` });
    return make("div", { class: "load", style: `height:${rowHeight}px` }, make("b", {}, expert), bar, make("span", {}, count));
  }), make("div", { class: "mean", style: `left:${26 + (110 * mean) / longest}px` }, make("span", {}, `mean ${twoDecimals(mean)}`)));
}

const nameToken = (state, token) => state.labels[token] ?? `token ${token}`;
const nameChoice = (expert, weight) => `expert ${expert} (${twoDecimals(weight)})`;

function render({ model, el }) {
  const chosen = { token: 0, expert: 0 };
  let frame = 0;
  let drag = null;

  const slider = (min, max, step) => make("input", { type: "range", min, max, step, ...QUIET });
  const score = make("select", QUIET, ...Object.entries(SCORES).map(([value, text]) => make("option", { value }, text)));
  const fields = {
    num_experts: slider(2, 64, 1), top_k: slider(1, 8, 1), score, temperature: slider(0.05, 5, 0.05),
    renormalise: make("input", { type: "checkbox", ...QUIET }),
    seed: make("input", { type: "number", min: 0, max: 2 ** 31 - 1, step: 1, ...QUIET }),
  };
  const shown = { num_experts: make("span", { class: "value" }), top_k: make("span", { class: "value" }), temperature: make("span", { class: "value" }) };
  const asTable = make("input", { type: "checkbox", ...QUIET });
  const sample = make("button", { type: "button", ...QUIET }, "New sample");
  const summary = make("p", { class: "summary", "aria-live": "polite" });
  const grid = make("table", { class: "grid", role: "grid", "aria-label": "Router logits, tokens by experts" });
  const ribbons = make("svg", { width: 230, role: "img", "aria-label": "Ribbons from each token to its experts, as thick as their weight" });
  const bars = make("div", { class: "bars", role: "img", "aria-label": "Bars: assignments of each expert, with their mean" });
  const picture = make("div", { class: "picture" }, make("div", { class: "scroll" }, grid), make("div", { class: "flow" }, ribbons, bars));
  const numbers = make("div", { class: "scroll tables" });
  const logitName = make("span");
  const logit = make("input", { type: "number", min: -20, max: 20, step: 0.1, ...QUIET });
  const goesTo = make("span", { class: "goes-to" });
  const labelled = (text, input, ...rest) => make("label", {}, make("span", {}, text), input, ...rest);
  el.replaceChildren(make("div", { class: "route-one-batch" },
    make("div", { class: "controls" },
      labelled("Experts", fields.num_experts, shown.num_experts), labelled("Top-k", fields.top_k, shown.top_k),
      labelled("Score", score), labelled("Renormalise", fields.renormalise),
      labelled("Temperature", fields.temperature, shown.temperature), labelled("Seed", fields.seed),
      sample, labelled("Show as table", asTable)),
    summary, picture, numbers,
    make("div", { class: "controls" }, make("label", {}, logitName, logit), goesTo), make("p", { class: "hint" }, HINT)));

  // The state under the traits' names, made to fit where only one of them has been set so far.
  function readState() {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    state.logits = resizeLogits(state.logits, state.seed, state.num_experts);
    state.top_k = Math.min(state.top_k, state.num_experts);
    return state;
  }

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  function sow(seed) {
    const { logits, num_experts } = readState();
    update({ seed, logits: drawLogits(seed, logits.length, num_experts) });
  }

  function changeChosen(value) {
    update({ logits: changeLogit(readState().logits, chosen.token, chosen.expert, value) });
  }

  function buildGrid(state) {
    const size = Math.max(12, Math.min(42, Math.floor(420 / state.num_experts)));
    const experts = Array.from({ length: state.num_experts }, (_, expert) => expert);
    grid.className = size < 30 ? "grid narrow" : "grid";
    grid.style.setProperty("--cell", `${size}px`);
    grid.replaceChildren(
      make("thead", {}, make("tr", { role: "row" }, make("td"), ...experts.map((expert) =>
        make("th", { scope: "col" }, expert, make("span", { class: `swatch ${swatch(expert)}` }))))),
      make("tbody", {}, ...state.logits.map((_, token) =>
        make("tr", { role: "row" }, make("th", { scope: "row" }, nameToken(state, token)), ...experts.map((expert) =>
          make("td", { role: "gridcell", "data-token": token, "data-expert": expert, ...QUIET }))))));
  }

  const cellAt = (token, expert) => grid.tBodies[0].rows[token].cells[expert + 1];

  function drawGrid(state, routes) {
    const largest = Math.max(3, ...state.logits.flat().map(Math.abs));
    state.logits.forEach((row, token) => row.forEach((value, expert) => {
      const cell = cellAt(token, expert);
      const slot = routes[token].experts.indexOf(expert);
      const { fill, ink } = cellColour(value, largest);
      const choice = slot < 0 ? "" : `, choice ${slot + 1}, weight ${twoDecimals(routes[token].weights[slot])}`;
      cell.style.cssText = `background:${fill};color:${ink}`;
      cell.textContent = grid.classList.contains("narrow") ? "" : twoDecimals(value);
      cell.tabIndex = token === chosen.token && expert === chosen.expert ? 0 : -1;
      cell.setAttribute("aria-label", `${nameToken(state, token)}, expert ${expert}, logit ${twoDecimals(value)}${choice}`);
      if (slot < 0) delete cell.dataset.rank;
      else cell.dataset.rank = slot + 1;
    }));
  }

  function drawTables(state, routes, load) {
    const choices = Array.from({ length: state.top_k }, (_, slot) => `Choice ${slot + 1}`);
    numbers.replaceChildren(
      makeTable("Experts and weights", ["Token", ...choices], routes.map(({ experts, weights }, token) =>
        [nameToken(state, token), ...experts.map((expert, slot) => nameChoice(expert, weights[slot]))])),
      makeTable("Load", ["Expert", "Assignments"], load.map((count, expert) => [expert, count])));
  }

  function draw() {
    frame = 0;
    const state = readState();
    const [routes, tokens] = [route(state), state.logits.length];
    const load = loadOf(routes, state.num_experts);
    chosen.token = Math.min(chosen.token, tokens - 1);
    chosen.expert = Math.min(chosen.expert, state.num_experts - 1);
    for (const [name, field] of Object.entries(fields)) {
      if (field.type === "checkbox") field.checked = state[name];
      else if (field !== document.activeElement || field.type !== "number") field.value = state[name];
    }
    fields.top_k.max = Math.min(8, state.num_experts);
    for (const [name, text] of Object.entries(shown)) text.textContent = state[name];
    if (summary.textContent !== summarise(state)) summary.textContent = summarise(state);
    picture.hidden = asTable.checked;
    numbers.hidden = !asTable.checked;
    if (grid.rows.length !== tokens + 1 || grid.rows[0].cells.length !== state.num_experts + 1) buildGrid(state);
    drawGrid(state, routes);
    const rowHeight = Math.max(12, (26 * tokens) / state.num_experts);
    drawRibbons(ribbons, state, routes, rowHeight, chosen.token);
    drawBars(bars, load, rowHeight);
    drawTables(state, routes, load);
    const { experts, weights } = routes[chosen.token];
    logitName.textContent = `Logit of ${nameToken(state, chosen.token)}, expert ${chosen.expert}`;
    if (logit !== document.activeElement) logit.value = state.logits[chosen.token][chosen.expert];
    goesTo.textContent = `${nameToken(state, chosen.token)} goes to ` +
      `${experts.map((expert, slot) => nameChoice(expert, weights[slot])).join(", ")}; its weights add up to ${twoDecimals(sum(weights))}.`;
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  function choose(token, expert) {
    const { logits, num_experts } = readState();
    chosen.token = Math.max(0, Math.min(logits.length - 1, token));
    chosen.expert = Math.max(0, Math.min(num_experts - 1, expert));
    cellAt(chosen.token, chosen.expert).focus();
    schedule();
  }

