// All-to-all board: experts on ranks, the bytes that ranks then exchange, and the rank that everyone waits for.
// The first half is arithmetic without a page, the twin of all_to_all_board.py, which asks the library; a test compares
// the two.

const [MOST_RANKS, MOST_EXPERTS_PER_RANK, MOST_TOP_K, MOST_TOKENS] = [16, 8, 8, 512];
const MOST_EXPERTS = MOST_RANKS * MOST_EXPERTS_PER_RANK;
const FITTED = ["nodes", "top_k", "node_limit", "replicas", "homes"];
const TRAITS = ["clusters", "cluster", "ranks", "experts_per_rank", "tokens", "skew", "relay", "even", "seed", "layer",
  ...FITTED, "refused"];
const WAYS = [["inside", "send"], ["inside", "receive"], ["between", "send"], ["between", "receive"]];
const PREFIXES = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]];

const times = (length, make) => Array.from({ length }, (_, number) => make(number));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;
const clusterOf = ({ clusters, cluster }) => clusters.find(({ name }) => name === cluster) ?? clusters[0];
const countExperts = ({ ranks, experts_per_rank }) => ranks * experts_per_rank;
export const inOrder = (state) => times(countExperts(state), (expert) => Math.floor(expert / state.experts_per_rank));

// Where the highest value is, the first of equal ones.
function highest(values) {
  let best = 0; // a plain loop: it runs over every logit of a sample
  for (let place = 1; place < values.length; place++) if (values[place] > values[best]) best = place;
  return best;
}

// Where the highest values are, best first.
function bestOf(values, count) {
  const left = values.slice();
  return times(count, () => {
    const best = highest(left);
    left[best] = -Infinity;
    return best;
  });
}

// What was last made of these numbers, if they are the same again: a sample is drawn once, however experts move.
function remember(make) {
  let [known, found] = ["", null];
  return (...given) => {
    const key = given.join();
    if (key !== known) [known, found] = [key, make(...given)];
    return found;
  };
}

const fewestNodes = ({ top_k }, numExperts, nodes) => Math.ceil((top_k * nodes) / numExperts);

// The settings that depend on others, as near to what they were as the others allow.
export function fit(state) {
  const [{ ranks }, numExperts] = [state, countExperts(state)];
  const divides = times(state.nodes, (number) => number + 1).filter((number) => ranks % number === 0);
  const nodes = clusterOf(state).between ? divides.at(-1) : 1;
  const top_k = Math.min(state.top_k, numExperts);
  const limit = state.node_limit && Math.max(state.node_limit, fewestNodes({ top_k }, numExperts, nodes));
  const known = state.homes.length === numExperts && Math.max(...state.homes) < ranks;
  return { nodes, top_k, node_limit: limit && limit < nodes ? limit : null,
    replicas: Math.min(state.replicas, ranks - 1), homes: known ? state.homes : inOrder(state) };
}

// Number `count` of the stream `seed`, in 0..1: mulberry32.
export function uniform(seed, count) {
  const state = (seed + Math.imul(count + 1, 0x6d2b79f5)) | 0;
  let mixed = Math.imul(state ^ (state >>> 15), state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
}

const drawNoise = remember((seed, ranks, tokens, numExperts) => times(ranks * tokens, (row) => {
  const place = MOST_EXPERTS * (MOST_TOKENS * Math.floor(row / tokens) + (row % tokens));
  return times(numExperts, (expert) => -Math.log(-Math.log(uniform(seed, place + expert) + 2 ** -33)));
}));

// How popular each expert is: 1 for the most popular one.
function drawPopularity(seed, numExperts) {
  const key = times(numExperts, (expert) => uniform(seed, MOST_EXPERTS * MOST_TOKENS * MOST_RANKS + expert));
  const popularity = [];
  [...key.keys()].sort((a, b) => key[a] - key[b]).forEach((expert, place) => { popularity[expert] = place + 1; });
  return popularity;
}

// Gumbel noise - skew * log(popularity rank), a row a token, in steps of 1/4096: ties are ties in both languages.
export function drawLogits(seed, ranks, tokens, numExperts, skew) {
  const less = drawPopularity(seed, numExperts).map((place) => skew * Math.log(place));
  return drawNoise(seed, ranks, tokens, numExperts)
    .map((row) => row.map((noise, expert) => Math.floor(4096 * (noise - less[expert]) + 0.5) / 4096));
}

// The nodes whose experts a token may take: those with the highest sums of their two best softmax scores.
function allowNodes(row, nodes, limit) {
  const [most, size] = [Math.max(...row), row.length / nodes];
  const powers = row.map((logit) => Math.exp(logit - most));
  const total = sum(powers);
  const scores = times(nodes, (node) => {
    const own = powers.slice(node * size, (node + 1) * size).map((power) => power / total);
    return sum(bestOf(own, Math.min(2, size)).map((place) => own[place]));
  });
  return bestOf(scores, limit);
}

// Each token's experts, best first; the tokens of rank 0 come first.
const routeTokens = remember((seed, ranks, tokens, numExperts, skew, topK, nodes, limit) =>
  drawLogits(seed, ranks, tokens, numExperts, skew).map((row) => {
    if (!limit) return bestOf(row, topK);
    const allowed = allowNodes(row, nodes, limit);
    const size = numExperts / nodes;
    return bestOf(row.map((logit, expert) => (allowed.includes(Math.floor(expert / size)) ? logit : -Infinity)), topK);
  }));

export const routeOf = (state) => routeTokens(state.seed, state.ranks, state.tokens, countExperts(state), state.skew,
  state.top_k, state.nodes, state.node_limit);

export function loadsOf(state) {
  const loads = times(countExperts(state), () => 0);
  for (const row of routeOf(state)) for (const expert of row) loads[expert] += 1;
  return loads;
}

// The expert of each further replica: the one with the largest load a replica, again and again.
function replicate(loads, extra) {
  const count = loads.map(() => 1);
  return times(extra, () => {
    const hottest = highest(loads.map((load, expert) => load / count[expert]));
    count[hottest] += 1;
    return hottest;
  });
}

// The experts of each rank: each at home, and replicas of the hottest, each on the lightest rank that has none of it,
// under a node limit of its own node if it can.
export function placeReplicas(state, loads) {
  const { ranks, homes } = state;
  const extra = replicate(loads, state.replicas);
  const shares = loads.map((load, expert) => load / (1 + extra.filter((other) => other === expert).length));
  const [held, weights] = [times(ranks, () => []), times(ranks, () => 0)];
  const put = (expert, rank) => { held[rank].push(expert); weights[rank] += shares[expert]; };
  const nodeOf = (rank) => (state.node_limit ? Math.floor((rank * state.nodes) / ranks) : 0);
  homes.forEach((home, expert) => put(expert, home));
  for (const expert of extra.sort((a, b) => shares[b] - shares[a])) {
    const away = (rank) => Number(nodeOf(rank) !== nodeOf(homes[expert]));
    const free = times(ranks, (rank) => rank).filter((rank) => !held[rank].includes(expert));
    put(expert, free.sort((a, b) => away(a) - away(b) || weights[a] - weights[b] || a - b)[0]);
  }
  return held;
}

// The rank of each expert, packed by load: heaviest first, each onto the lightest rank that has room. Under a node
// limit experts stay in their node.
export function packByLoad(state, loads = loadsOf(state)) {
  const nodes = state.node_limit ? state.nodes : 1;
  const [size, share] = [loads.length / nodes, state.ranks / nodes];
  const [weights, counts, homes] = [times(state.ranks, () => 0), times(state.ranks, () => 0), []];
  for (let node = 0; node < nodes; node++) {
    const experts = times(size, (place) => node * size + place);
    experts.sort((a, b) => loads[b] - loads[a] || a - b).forEach((expert, number) => {
      const open = times(share, (place) => node * share + place)
        .filter((rank) => counts[rank] < state.experts_per_rank);
      const lightest = open.sort((a, b) => weights[a] - weights[b] || a - b)[0];
      homes[expert] = state.experts_per_rank === 1 ? node * share + (expert % share) : lightest;
      weights[homes[expert]] += loads[expert];
      counts[homes[expert]] += 1;
    });
  }
  return homes;
}

// Copies of tokens from rank to rank, straight or once to each node and on from there, and the rows of each rank. An
// expert's tokens go to its replicas in turn; rank r starts with replica r.
export function copyTokens(state, held) {
  const { ranks, nodes, tokens, relay } = state;
  const perNode = ranks / nodes;
  const holders = times(countExperts(state), (expert) =>
    times(ranks, (rank) => rank).filter((rank) => held[rank].includes(expert)));
  const [copies, rows] = [times(ranks, () => times(ranks, () => 0)), times(ranks, () => 0)];
  let turns = [];
  routeOf(state).forEach((experts, token) => {
    const rank = Math.floor(token / tokens);
    if (token % tokens === 0) turns = holders.map(() => rank);
    const wanted = experts.map((expert) => holders[expert][turns[expert]++ % holders[expert].length]);
    for (const to of wanted) rows[to] += 1;
    const relayOf = (node) => node * perNode + (rank % perNode);
    const nodeOf = (one) => Math.floor(one / perNode);
    for (const to of new Set(wanted)) copies[relay ? relayOf(nodeOf(to)) : rank][to] += 1;
    if (!relay) return;
    for (const node of new Set(wanted.map(nodeOf))) if (node !== nodeOf(rank)) copies[rank][relayOf(node)] += 1;
  });
  return { copies, rows };
}

function busTime(sent, { bus }) {
  const ranks = sent.length;
  const kept = sum(sent.map((row, rank) => row[rank]));
  const carried = sum(sent.flat()) - kept;
  return (bus.start_us + bus.message_us * ranks * (ranks - 1)) / 1e3 +
    (carried / bus.carried_gigabytes_per_s + kept / bus.kept_gigabytes_per_s) / 1e6;
}

// Bytes of each rank on each link, there and back; what it keeps crosses none.
export function countWays(sent, perNode) {
  const near = (a, b) => (Math.floor(a / perNode) === Math.floor(b / perNode) ? "inside" : "between");
  const ways = { inside: { send: [], receive: [] }, between: { send: [], receive: [] } };
  for (const [link, way] of WAYS) {
    ways[link][way] = sent.map((_, rank) => sum(sent.map((_, other) => {
      if (other === rank || near(rank, other) !== link) return 0;
      return way === "send" ? sent[rank][other] : sent[other][rank];
    })));
  }
  return ways;
}

// A predicted exchange: each rank's latencies + the longer of its links, each the longer of its two directions; the
// slowest rank is the time of all.
export function timeExchange(sent, cluster, perNode) {
  const ways = countWays(sent, perNode);
  const long = (link, way) => ways[link][way].map((bytes) =>
    (cluster[link] ? bytes / (cluster[link].gigabytes_per_s * 1e6) : 0));
  const longest = (link) => {
    const back = long(link, "receive");
    return long(link, "send").map((there, rank) => Math.max(there, back[rank]));
  };
  const [inside, between, bus] = [longest("inside"), longest("between"), cluster.bus ? busTime(sent, cluster) : 0];
  const latency = sent.map((_, rank) => sum(["inside", "between"].map((link) =>
    (cluster[link] && ways[link].send[rank] + ways[link].receive[rank] ? cluster[link].latency_us / 1e3 : 0))));
  const byRank = sent.map((_, rank) => latency[rank] + Math.max(inside[rank], between[rank]) + bus);
  const slowest = highest(byRank);
  const even = Math.max(...latency) + Math.max(mean(long("inside", "send")), mean(long("between", "send"))) + bus;
  const link = inside[slowest] >= between[slowest] ? "inside" : "between";
  const late = !cluster.bus && Math.max(inside[slowest], between[slowest]) <= latency[slowest];
  return { ways, byRank, slowest, ms: byRank[slowest], even, link, late, shared: Boolean(cluster.bus) };
}

// Everything that the board shows.
export function examine(state) {
  const { ranks, nodes, layer, top_k } = state;
  const [cluster, loads] = [clusterOf(state), loadsOf(state)];
  const held = placeReplicas(state, loads);
  const { copies, rows } = copyTokens(state, held);
  const dispatch = copies.map((row) => row.map((count) => count * (layer.row_bytes + top_k * layer.slot_bytes)));
  const combine = copies.map((_, rank) => copies.map((row) => row[rank] * layer.row_bytes));
  const [there, back] = [dispatch, combine].map((sent) => timeExchange(sent, cluster, ranks / nodes));
  const expertsMs = rows.map((count) => 6 * count * layer.d_model * layer.d_expert * (1 / cluster.tflop_s / 1e9));
  const busiest = highest(expertsMs);
  return {
    loads, held, rows, dispatch, combine, there, back, expertsMs, busiest,
    ms: there.ms + back.ms + expertsMs[busiest], evenMs: there.even + back.even + mean(expertsMs),
    crossing: sum(WAYS.filter(([, way]) => way === "send").map(([link]) => sum(there.ways[link].send))),
    between: sum(there.ways.between.send),
  };
}

const sayRatio = (values, place) =>
  `${threeDigits((values[place] * values.length) / sum(values))} times the mean`;

function sayWait({ clusters, cluster }, time) {
  if (time.shared) return "every rank alike, which share the cores of the machine";
  if (time.late) return `rank ${time.slowest}, whose latencies are longer than its bytes take`;
  const { send, receive } = time.ways[time.link];
  const [way, sizes] = send[time.slowest] >= receive[time.slowest] ? ["sends", send] : ["receives", receive];
  const { name } = clusterOf({ clusters, cluster })[time.link];
  return `rank ${time.slowest}, which ${way} ${sayCount(sizes[time.slowest], "B")} over ${name}, ` +
    sayRatio(sizes, time.slowest);
}

const sayCrossing = ({ nodes }, { crossing, between }) => (nodes === 1 ? "" :
  ` Of ${sayCount(crossing, "B")} dispatched to other ranks, ${sayCount(between, "B")} go to another node.`);

export function summarise(state, found = examine(state)) {
  const { there, back, rows, busiest } = found;
  const nodes = state.nodes === 1 ? "1 node" : `${state.nodes} nodes`;
  const same = !there.shared && there.slowest === busiest && back.slowest === busiest;
  return `Predicted for one layer on ${state.cluster}, ${state.ranks} ranks in ${nodes}: ${sayTime(found.ms)} = ` +
    `dispatch ${sayTime(there.ms)} + experts ${sayTime(found.expertsMs[busiest])} + combine ${sayTime(back.ms)}. ` +
    `${same ? `Rank ${busiest} is slowest in all three. ` : ""}Dispatch waits for ${sayWait(state, there)}; ` +
    `the experts for rank ${busiest}, which computes ${withCommas(rows[busiest])} of ${withCommas(sum(rows))} rows, ` +
    `${sayRatio(rows, busiest)}; combine for ${sayWait(state, back)}.${sayCrossing(state, found)}` +
    (state.even ? ` Predicted with even loads: ${sayTime(found.evenMs)}.` : "");
}

const withCommas = (number) => {
  const [whole, rest] = String(number).split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest ? `.${rest}` : "");
};

// A number by its first three digits, a half upwards.
export const threeDigits = (value) => withCommas(Number(value.toPrecision(3)));

export function sayCount(number, unit) {
  const [prefix, size] = PREFIXES.find(([, least]) => number >= least) ?? ["", 1];
  return `${threeDigits(number / size)} ${prefix}${unit}`;
}

export function sayTime(milliseconds) {
  if (milliseconds >= 1e3) return `${threeDigits(milliseconds / 1e3)} s`;
  return milliseconds >= 0.1 ? `${threeDigits(milliseconds)} ms` : `${threeDigits(milliseconds * 1e3)} µs`;
}

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";
const [WIDTH, EDGE, MOST_CELL, SENDS] = [700, 46, 56, 138]; // EDGE: left of the matrix; SENDS: right of it
const [RECEIVES, BAR, NAMES_WIDTH] = [64, 26, 96];
const PARTS = ["dispatch", "experts", "combine"];

const VALUE = '<span aria-hidden="true"></span>'; // the number beside a slider, which says its own aloud
const PAGE = `
<div class="controls">
  <label>Topology <select name="cluster"></select></label>
  <label>Ranks <select name="ranks"></select></label>
  <label>Nodes <select name="nodes"></select></label>
  <label>Experts a rank
    <input name="experts_per_rank" type="range" min="1" max="${MOST_EXPERTS_PER_RANK}">${VALUE}</label>
  <label>Top-k <input name="top_k" type="range" min="1" max="${MOST_TOP_K}">${VALUE}</label>
  <label>Tokens a rank
    <input name="tokens" class="log" type="range" min="4" max="${Math.log2(MOST_TOKENS)}">${VALUE}</label>
  <label>Skew <input name="skew" type="range" min="0" max="2" step="0.1">${VALUE}</label>
  <label>Nodes a token <select name="node_limit"></select></label>
  <label><input name="relay" type="checkbox"> Cross once a node, then relay</label>
  <label>Seed <input name="seed" type="number" min="0" max="2147483647"></label>
  <button type="button" class="again">New sample</button>
</div>
<div class="controls placing">
  <label>Expert <select class="expert"></select></label>
  <label>lies on <select class="home"></select></label>
  <button type="button" class="in-order">In order</button>
  <button type="button" class="pack">Pack by load</button>
  <label>Replicas of the hottest <input name="replicas" type="range" min="0">${VALUE}</label>
  <label><input name="even" type="checkbox"> Compare with even loads</label>
  <label><input class="as-table" type="checkbox"> Show as table</label>
</div>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<div class="picture">
  <div class="times"></div>
  <div class="board"></div>
  <p class="hint">A box is a rank, with the rows that it computes (the line is the mean) and the experts that it holds,
    the busier the more coloured; dashed ones are replicas. Drag an expert to another rank, or choose both above the board.
    Packing and replicas know this sample's loads; a real system knows only earlier ones.</p>
  <div class="matrix"></div>
  <p class="hint">From the row's rank to the column's, before the experts; the answers take the same ways back. Hatched
    cells stay in their rank and cross no link. Plain parts of bars stay in the node, hatched parts go to another one.
    With relays a token goes to each node once, to the rank of the same place there, which hands it on.</p>
</div>
<div class="tables" hidden></div>
<p class="source"></p>`;

const DRAWN = ["svg", "g", "path", "rect", "text"];

function make(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const short = (number) => Number(number.toFixed(2));
const write = (kind, x, y, text) => make("text", { class: kind, x: short(x), y: short(y) }, text);
const many = (number, what) => `${withCommas(number)} ${what}${number === 1 ? "" : "s"}`;

// Slanting lines across a box, and no further.
function hatch(kind, x, y, wide, high, gap = 7) {
  const lines = times(Math.ceil((wide + high) / gap), (number) => (number + 0.5) * gap).filter((at) => at < wide + high)
    .map((at) => {
      const [top, low] = [Math.max(0, at - wide), Math.max(0, at - high)];
      return `M${short(x + at - top)} ${short(y + top)}L${short(x + low)} ${short(y + at - low)}`;
    });
  return make("path", { class: kind, d: lines.join("") || "M0 0" });
}

const block = (kind, x, y, wide, high) =>
  make("rect", { class: kind, x: short(x), y: short(y), width: short(wide), height: short(high) });

// One unit for all numbers of a picture, and how a number is written in it.
function unitOf(most) {
  const [prefix, size] = PREFIXES.find(([, least]) => most >= least) ?? ["", 1];
  const digits = (value) => (size === 1 || value >= 100 ? 0 : value >= 10 ? 1 : 2);
  const say = (bytes) => (bytes ? (bytes / size).toFixed(digits(bytes / size)) : "0");
  return { name: `${prefix}B`, say };
}

// Which parts of the step wait for each rank.
function waitsOf({ there, back, busiest }, ranks) {
  const slowest = [there.shared ? -1 : there.slowest, busiest, back.shared ? -1 : back.slowest];
  return times(ranks, (rank) => PARTS.filter((_, part) => slowest[part] === rank));
}

function drawTimes(state, found) {
  const { there, back, expertsMs, busiest } = found;
  const bars = [["this board", [there.ms, expertsMs[busiest], back.ms], found.ms]];
  if (state.even) bars.push(["even loads", [there.even, mean(expertsMs), back.even], found.evenMs]);
  const scale = (WIDTH - NAMES_WIDTH - 76) / Math.max(...bars.map(([, , ms]) => ms));
  const marks = bars.flatMap(([name, parts, ms], number) => {
    const y = 4 + number * (BAR + 6);
    let x = NAMES_WIDTH;
    const drawn = parts.flatMap((part, at) => {
      const [left, wide, text] = [x, part * scale, `${PARTS[at]} ${sayTime(part)}`];
      x += wide;
      return [make("g", {}, block(PARTS[at], left, y, wide, BAR),
        ...(at === 1 ? [hatch("lines", left, y, wide, BAR)] : []),
        ...(wide > 7 * text.length ? [write("middle", left + wide / 2, y + 17, text)] : []))];
    });
    return [write("name", 0, y + 17, name), ...drawn, write("total", x + 6, y + 17, sayTime(ms))];
  });
  const say = ([name, parts, ms]) =>
    `${name} ${sayTime(ms)}: ${parts.map((part, at) => `${PARTS[at]} ${sayTime(part)}`).join(", ")}`;
  const height = bars.length * (BAR + 6) + 4;
  return [make("b", {}, "Predicted time of the layer"), make("svg", { role: "img", viewBox: `0 0 ${WIDTH} ${height}`,
    "aria-label": `Predicted time, ${bars.map(say).join("; ")}` }, ...marks)];
}

// A rank with its experts. Its name says all of it; chips are for the pointer, and the selects do the same by keyboard.
function drawRank(state, found, rank, waits) {
  const { rows, held, loads } = found;
  const [most, hottest, middle] = [Math.max(...rows), Math.max(...loads, 1), mean(rows)];
  const [own, others] = [[], []];
  for (const expert of held[rank]) (state.homes[expert] === rank ? own : others).push(expert);
  const copies = loads.map((_, expert) => held.filter((experts) => experts.includes(expert)).length);
  const chip = (kind) => (expert) => make("span", { class: `chip ${kind}`, "data-expert": expert,
    style: `--heat: ${short((50 * loads[expert]) / copies[expert] / hottest)}%`,
    title: `expert ${expert}, ${many(loads[expert], "row")} of all ranks` }, expert);
  const slow = waits.length ? `; slowest in ${waits.join(", ")}` : "";
  const name = `Rank ${rank}: ${many(rows[rank], "row")}${slow}; experts ${own.join(", ") || "none"}` +
    (others.length ? `; replicas of ${others.join(", ")}` : "");
  const share = (value) => `${short((100 * value) / most)}%`;
  const kind = waits.length ? "rank slow" : "rank";
  return make("div", { class: kind, role: "group", "aria-label": name, "data-rank": rank },
    make("div", { "aria-hidden": "true" },
      make("b", {}, `Rank ${rank}`), make("div", { class: "rows" }, many(rows[rank], "row")),
      make("div", { class: "track" }, make("i", { style: `width: ${share(rows[rank])}` }),
        make("i", { class: "mean", style: `left: ${share(middle)}` })),
      make("div", { class: "chips" }, ...own.map(chip("own")), ...others.map(chip("replica"))),
      ...(waits.length ? [make("span", { class: "waits" }, `slowest: ${waits.join(", ")}`)] : [])));
}

function drawBoard(state, found) {
  const perNode = state.ranks / state.nodes;
  const waits = waitsOf(found, state.ranks);
  return times(state.nodes, (node) => make("div", { class: "node", role: "group", "aria-label": `Node ${node}` },
    make("span", { class: "title", "aria-hidden": "true" }, `Node ${node}`),
    make("div", { class: "ranks" }, ...times(perNode, (place) =>
      drawRank(state, found, node * perNode + place, waits[node * perNode + place])))));
}

function drawCells(state, { dispatch }, cell, unit) {
  const most = Math.max(1, ...dispatch.flatMap((row, rank) => row.filter((_, other) => other !== rank)));
  return dispatch.flatMap((row, rank) => row.map((bytes, other) => {
    const [x, y] = [EDGE + other * cell, EDGE + rank * cell];
    const text = write("middle", x + cell / 2, y + cell / 2 + 4, unit.say(bytes));
    if (other === rank) {
      return make("g", { class: "kept" }, block("cell", x, y, cell, cell), hatch("lines", x, y, cell, cell), text);
    }
    const shade = block("cell", x, y, cell, cell);
    shade.style.setProperty("--share", `${short((50 * bytes) / most)}%`);
    return make("g", {}, shade, text);
  }));
}

// What each rank sends, right of its row, and receives, under its column: inside the node, then to or from others.
function drawEnds(state, { there, dispatch }, cell, unit) {
  const { inside, between } = there.ways;
  const end = EDGE + state.ranks * cell;
  const all = (way) => dispatch.map((_, rank) => inside[way][rank] + between[way][rank]);
  const most = Math.max(1, ...all("send"), ...all("receive"));
  const bold = (rank) => (!there.shared && rank === there.slowest ? " slowest" : "");
  return dispatch.flatMap((_, rank) => {
    const at = EDGE + rank * cell;
    const [near, far] = [inside, between].map(({ send }) => (send[rank] / most) * (SENDS - 60));
    const [close, wide] = [inside, between].map(({ receive }) => (receive[rank] / most) * (RECEIVES - 6));
    const thick = Math.min(18, cell - 8);
    const [y, x] = [at + (cell - thick) / 2, at + (cell - thick) / 2];
    return [block("near", end + 8, y, near, thick), block("far", end + 8 + near, y, far, thick),
      hatch("lines", end + 8 + near, y, far, thick, 5),
      write(`sends${bold(rank)}`, end + 12 + near + far, at + cell / 2 + 4, unit.say(all("send")[rank])),
      block("near", x, end + 8, thick, close), block("far", x, end + 8 + close, thick, wide),
      hatch("lines", x, end + 8 + close, thick, wide, 5),
      write(`gets middle${bold(rank)}`, at + cell / 2, end + 20 + close + wide, unit.say(all("receive")[rank]))];
  });
}

function drawMatrix(state, found) {
  const { ranks, nodes } = state;
  const cell = Math.min(MOST_CELL, Math.floor((WIDTH - EDGE - SENDS) / ranks));
  const [end, perNode] = [EDGE + ranks * cell, ranks / nodes];
  const unit = unitOf(Math.max(...found.dispatch.flat()));
  const heads = times(ranks, (rank) => [write("middle", EDGE + (rank + 0.5) * cell, EDGE - 6, rank),
    write("end", EDGE - 6, EDGE + (rank + 0.5) * cell + 4, rank)]).flat();
  const frames = times(nodes, (node) => block("frame", EDGE + node * perNode * cell, EDGE + node * perNode * cell,
    perNode * cell, perNode * cell));
  const { there } = found;
  const ends = (way, rank) => there.ways.inside[way][rank] + there.ways.between[way][rank];
  const busy = there.shared ? "" : `; rank ${there.slowest} is slowest: it sends ` +
    `${sayCount(ends("send", there.slowest), "B")} and receives ${sayCount(ends("receive", there.slowest), "B")}`;
  const name = `Predicted dispatch from rank to rank, ${sayCount(found.crossing, "B")} in all, ` +
    `${sayCount(found.between, "B")} of it between nodes${busy}`;
  return [make("b", {}, `Predicted dispatch, ${unit.name}`),
    make("svg", { role: "img", "aria-label": name, viewBox: `0 0 ${WIDTH} ${end + RECEIVES + 20}` },
      write("middle", (EDGE + end) / 2, 14, "to rank"), write("start", end + 8, EDGE - 6, "sends"),
      make("text", { class: "middle", transform: `translate(12 ${(EDGE + end) / 2}) rotate(-90)` }, "from rank"),
      write("end", EDGE - 6, end + 20, "gets"),
      ...heads, ...drawCells(state, found, cell, unit), ...frames, ...drawEnds(state, found, cell, unit))];
}

function makeTable(caption, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...rest.map((text) => make("td", {}, text))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function makeTables(state, found) {
  const { there, back, dispatch, expertsMs, busiest, rows, held, loads } = found;
  const perNode = state.ranks / state.nodes;
  const ranks = times(state.ranks, (rank) => rank);
  const holders = (expert) => ranks.filter((rank) => rank !== state.homes[expert] && held[rank].includes(expert));
  const bytes = (link, way, rank) => sayCount(there.ways[link][way][rank], "B");
  const steps = [["This board", there.ms, expertsMs[busiest], back.ms, found.ms],
    ["Even loads", there.even, mean(expertsMs), back.even, found.evenMs]].slice(0, state.even ? 2 : 1);
  return [
    makeTable("Predicted times", ["", "Dispatch", "Experts", "Combine", "Layer"],
      steps.map(([name, ...ms]) => [name, ...ms.map(sayTime)])),
    makeTable("Ranks, predicted", ["Rank", "Node", "Experts", "Rows", "Sends in its node", "Sends to others",
      "Receives in its node", "Receives from others", "Dispatch", "Experts", "Combine"], ranks.map((rank) =>
      [rank, Math.floor(rank / perNode), held[rank].join(", ") || "none", withCommas(rows[rank]),
        ...WAYS.filter(([, way]) => way === "send").map(([link, way]) => bytes(link, way, rank)),
        ...WAYS.filter(([, way]) => way === "receive").map(([link, way]) => bytes(link, way, rank)),
        sayTime(there.byRank[rank]), sayTime(expertsMs[rank]), sayTime(back.byRank[rank])])),
    makeTable("Predicted dispatch, from the row's rank to the column's", ["From", ...ranks],
      dispatch.map((row, rank) => [rank, ...row.map((one) => sayCount(one, "B"))])),
    makeTable("Experts", ["Expert", "Rows", "Rank", "Replicas on"], loads.map((load, expert) =>
      [expert, withCommas(load), state.homes[expert], holders(expert).join(", ") || "none"])),
  ];
}

function nameLinks({ inside, between, bus }) {
  if (bus) return "one machine, whose cores all ranks share";
  return `${inside.name}${between ? ` in a node, ${between.name} between` : ", one node"}`;
}

function saySource(state) {
  const { inside, between, bus, tflop_s, source, name } = clusterOf(state);
  const say = (link) => `${link.name} ${threeDigits(link.gigabytes_per_s)} GB/s (${link.source})`;
  const links = bus ? `carries ${threeDigits(bus.carried_gigabytes_per_s)} GB/s for all ranks together`
    : [inside, between].filter(Boolean).map(say).join("; ");
  const { d_model, d_expert } = state.layer;
  return `Nothing here is measured. ${name}: ${links}; ${threeDigits(tflop_s)} TFLOP/s a rank (${source}). ` +
    `Experts of ${withCommas(d_model)} x ${withCommas(d_expert)}, bfloat16. Left out: congestion, reading the experts' weights, ` +
    "and arithmetic below the data sheet's rate.";
}

function render({ model, el }) {
  const root = make("div", { class: "all-to-all-board" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const fields = [...root.querySelectorAll("[name]")];
  const [asTable, expertChoice, homeChoice, board] = [".as-table", ".expert", ".home", ".board"].map(find);
  for (const control of root.querySelectorAll("input, select, button")) control.setAttribute(QUIET, "");
  let [frame, chosen, drag] = [0, 0, null];

  // The state under the traits' names, made to fit where only some of several traits have arrived.
  function readState() {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    return { ...state, cluster: clusterOf(state).name, ...fit(state) };
  }

  // Options are made anew only where others are offered, so that an open list stays open.
  function fill(select, offered) {
    const wanted = offered.map(([value, text]) => `${value} ${text}`).join("\n");
    if (select.dataset.offered === wanted) return;
    select.dataset.offered = wanted;
    select.replaceChildren(...offered.map(([value, text]) => make("option", { value }, text)));
  }

  function fillSelects(state, loads) {
    const { ranks, nodes, clusters } = state;
    const crosses = Boolean(clusterOf(state).between);
    const named = (one) => [one, one];
    fill(find("[name=cluster]"), clusters.map((one) => [one.name, `${one.name}: ${nameLinks(one)}`]));
    fill(find("[name=ranks]"), times(MOST_RANKS - 1, (number) => named(number + 2)));
    fill(find("[name=nodes]"), times(crosses ? ranks : 1, (number) => number + 1)
      .filter((number) => ranks % number === 0).map(named));
    const fewest = fewestNodes(state, countExperts(state), nodes);
    fill(find("[name=node_limit]"), [["", "any"],
      ...times(Math.max(0, nodes - fewest), (number) => [fewest + number, `at most ${fewest + number}`])]);
    chosen = Math.min(chosen, loads.length - 1);
    fill(expertChoice, loads.map((load, expert) => [expert, `${expert} (${many(load, "row")})`]));
    fill(homeChoice, times(ranks, (rank) => [rank, `rank ${rank}`]));
    [expertChoice.value, homeChoice.value] = [chosen, state.homes[chosen]];
    for (const name of ["node_limit", "relay"]) find(`[name=${name}]`).disabled = nodes === 1;
    find("[name=top_k]").max = Math.min(MOST_TOP_K, loads.length);
    find("[name=replicas]").max = ranks - 1;
  }

  function setFields(state, loads) {
    fillSelects(state, loads);
    for (const field of fields) {
      const value = field.matches(".log") ? Math.log2(state[field.name]) : state[field.name] ?? "";
      if (field.type === "checkbox") field.checked = value;
      else if (field.value !== String(value)) field.value = value;
      if (field.type !== "range") continue;
      field.nextElementSibling.textContent = state[field.name];
      if (field.matches(".log")) field.setAttribute("aria-valuetext", state[field.name]);
    }
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    if (drag) return; // the chip under the pointer would go
    const state = readState();
    const found = examine(state);
    const sentence = summarise(state, found);
    setFields(state, found.loads);
    if (find(".summary").textContent !== sentence) find(".summary").textContent = sentence;
    find(".source").textContent = saySource(state);
    find(".picture").hidden = asTable.checked;
    find(".tables").hidden = !asTable.checked;
    if (asTable.checked) { find(".tables").replaceChildren(...makeTables(state, found)); return; }
    find(".times").replaceChildren(...drawTimes(state, found));
    board.replaceChildren(...drawBoard(state, found));
    markChosen();
    find(".matrix").replaceChildren(...drawMatrix(state, found));
  }

  function markChosen() {
    for (const chip of board.querySelectorAll(".chip")) {
      chip.classList.toggle("chosen", Number(chip.dataset.expert) === chosen);
    }
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  function update(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  function setField(field) {
    const { name, value } = field;
    const number = field.matches(".log") ? 2 ** Number(value) : Number(value);
    if (name === "seed" && !(value !== "" && Number.isInteger(number) && number >= 0 && number < 2 ** 31)) return;
    const given = field.type === "checkbox" ? field.checked : name === "cluster" ? value : value === "" ? null : number;
    update({ [name]: given, ...fit({ ...readState(), [name]: given }) });
  }

  function move(expert, rank) {
    const { homes } = readState();
    if (homes[expert] !== rank) update({ homes: homes.map((home, other) => (other === expert ? rank : home)) });
  }

  const rankAt = ({ clientX, clientY }) => root.getRootNode().elementsFromPoint(clientX, clientY)
    .find((node) => node.matches(".rank") && root.contains(node));

  function choose(expert) {
    chosen = expert;
    [expertChoice.value, homeChoice.value] = [chosen, readState().homes[chosen]];
    markChosen();
  }

  function startDrag(event) {
    const chip = event.target.closest(".chip");
    if (!chip || drag || event.button) return;
    choose(Number(chip.dataset.expert));
    if (!chip.matches(".own")) return; // replicas go where they weigh least
    event.preventDefault();
    board.setPointerCapture(event.pointerId);
    drag = { chip, x: event.clientX, y: event.clientY };
    chip.classList.add("held");
  }

  function keepDragging(event) {
    if (!drag) return;
    drag.chip.style.transform = `translate(${event.clientX - drag.x}px, ${event.clientY - drag.y}px)`;
    const over = rankAt(event);
    for (const rank of board.querySelectorAll(".rank")) rank.classList.toggle("over", rank === over);
  }

  function stopDrag(event) {
    if (!drag) return;
    const over = event.type === "pointerup" ? rankAt(event) : null;
    drag = null;
    if (over) move(chosen, Number(over.dataset.rank));
    schedule();
  }

  for (const field of fields) field.addEventListener("input", () => setField(field));
  asTable.addEventListener("change", schedule);
  expertChoice.addEventListener("input", () => choose(Number(expertChoice.value)));
  homeChoice.addEventListener("input", () => move(chosen, Number(homeChoice.value)));
  find(".again").addEventListener("click", () => update({ seed: (model.get("seed") + 1) % 2 ** 31 }));
  find(".in-order").addEventListener("click", () => update({ homes: inOrder(readState()) }));
  find(".pack").addEventListener("click", () => update({ homes: packByLoad(readState()) }));
  board.addEventListener("pointerdown", startDrag);
  board.addEventListener("pointermove", keepDragging);
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) board.addEventListener(end, stopDrag);
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  draw();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    cancelAnimationFrame(frame);
    el.replaceChildren();
  };
}

export default { render };
