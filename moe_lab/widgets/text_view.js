// Text view: the bytes of a sentence, and which experts read each of them in every layer.
// The first part is arithmetic without a page, the twin of text_view.py; a test compares the two.

const READING = ["text", "read_text", "total_bytes", "pieces", "experts", "weights", "num_experts", "error"];
const TRAITS = [...READING, "layer", "slot", "refused"];
const ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];
const CONTINUED = "⋯";
const TYPING_MS = 250; // wait until the typing pauses
const ANSWER_MS = 3000; // then give a kernel this long

// Count the bytes of each expert in one layer, by one choice or (slot -1) by all; empty slots count nowhere.
export function loadOf({ experts, num_experts }, layer, slot) {
  const load = Array(num_experts).fill(0);
  for (const row of experts[layer]) {
    for (const expert of slot < 0 ? row : row.slice(slot, slot + 1)) if (expert >= 0) load[expert] += 1;
  }
  return load;
}

// The layer and the choice that are shown: the traits, made to fit this reading.
export function placeOf({ experts, layer, slot }) {
  const shown = Math.min(layer, experts.length - 1);
  return { layer: shown, slot: Math.min(slot, experts[shown][0].length - 1) };
}

export function summarise(state) {
  if (state.error) return `This text could not be read: ${state.error}`;
  if (!state.pieces.length) return "There is no text to read yet.";
  const { layer, slot } = placeOf(state);
  const load = loadOf(state, layer, slot);
  const shown = state.pieces.length;
  const total = load.reduce((sum, count) => sum + count, 0);
  const most = Math.max(...load);
  const share = Math.floor((200 * most + Math.max(1, total)) / (2 * Math.max(1, total)));
  const cut = shown < state.total_bytes ? ` Only the first ${shown} of ${state.total_bytes} bytes are shown.` : "";
  return `Layer ${layer}, ${nameSlot(slot)}: ${shown} ${shown === 1 ? "byte" : "bytes"}, busiest expert ` +
    `${load.indexOf(most)} takes ${most} of ${total} (${share} %); ${nameIdle(load)}.${cut}`;
}

export const nameSlot = (slot) => (slot < 0 ? "all choices" : `${ORDINALS[slot]} choice`);

export function nameIdle(load) {
  const idle = load.flatMap((count, expert) => (count ? [] : [expert]));
  if (!idle.length) return "every expert has some";
  if (idle.length > 4) return `${idle.length} experts have none`;
  if (idle.length === 1) return `expert ${idle[0]} has none`;
  return `experts ${idle.slice(0, -1).join(", ")} and ${idle.at(-1)} have none`;
}

// "byte 3, e", or "byte 4, continues ï": what a byte is, said aloud.
export function nameByte(pieces, byte) {
  let first = byte;
  while (first > 0 && pieces[first] === CONTINUED) first -= 1;
  return `byte ${byte}, ${first < byte ? "continues " : ""}${pieces[first]}`;
}

// "expert 5 (0.61), expert 2 (0.39)": the choices of one byte in one layer, empty slots left out.
export function nameChoices(state, layer, byte) {
  const choices = state.experts[layer][byte].flatMap((expert, slot) =>
    expert < 0 ? [] : [`expert ${expert} (${state.weights[layer][byte][slot].toFixed(2)})`]);
  return choices.join(", ") || "no expert";
}

// ---------------------------------------------------------------- the page

// JupyterLab takes arrow keys for itself unless the focused element says otherwise.
const QUIET = "data-lm-suppress-shortcuts";

const PAGE = `
<label class="sentence">Text to read <textarea rows="2" spellcheck="false"></textarea></label>
<div class="controls">
  <label>Layer <select name="layer"></select></label>
  <label>Choice <select name="slot"></select></label>
</div>
<p class="summary" aria-live="polite"></p>
<p class="refused" role="alert"></p>
<p class="notice" role="status"></p>
<div class="chips" role="group" aria-label="Bytes of the text; arrow keys move between them"></div>
<div class="byte"></div>
<p class="hint">Press an expert to see only its bytes; the count beside its number is of those.</p>
<div class="legend" role="group" aria-label="Show only the bytes of one expert"></div>
<div class="scroll"></div>`;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const button = (attributes, ...children) => make("button", { type: "button", [QUIET]: "", ...attributes }, ...children);

// Colours repeat after eight experts and the patterns then move on by one, so that 64 pairs all differ.
const swatch = (expert) => (expert < 0 ? "" : `colour-${expert % 8} pattern-${(expert + Math.floor(expert / 8)) % 8}`);

function makeChip(state, layer, slot, byte, only) {
  const row = state.experts[layer][byte].filter((expert) => expert >= 0);
  const asked = slot < 0 ? row : row.slice(slot, slot + 1);
  const lit = asked.includes(only) ? [only] : asked; // of many choices, the one that was asked for
  const numbers = lit.length > 4 ? `${lit.slice(0, 4).join(" ")} …` : lit.join(" ");
  const look = only === null || lit !== asked ? swatch(lit[0] ?? -1) : "";
  const name = `${nameByte(state.pieces, byte)}: ${nameChoices(state, layer, byte)}`;
  return button({ class: `chip ${look}`, "aria-label": name, tabindex: -1, "data-byte": byte },
    make("span", {}, state.pieces[byte]), make("b", {}, numbers || "–"), make("i"));
}

// Where one byte goes in every layer.
function drawByte(panel, state, byte) {
  const rows = state.experts.map((_, layer) =>
    make("tr", {}, make("th", { scope: "row" }, `Layer ${layer}`), make("td", {}, nameChoices(state, layer, byte))));
  const caption = make("caption", {}, `In every layer: ${nameByte(state.pieces, byte)}`);
  panel.replaceChildren(make("table", {}, caption, make("tbody", {}, ...rows)));
}

// Load, layers by experts; the darker, the more bytes.
function drawLoads(panel, state, layer, slot) {
  const loads = state.experts.map((_, one) => loadOf(state, one, slot));
  const largest = Math.max(1, ...loads.flat());
  const shade = (count) => `background:color-mix(in srgb, #0072b2 ${(100 * count) / largest}%, #fff);` +
    `color:${count > 0.95 * largest ? "#fff" : "#000"}`; // black reads at 4.5:1 or better on all but the darkest
  const head = loads[0].map((_, expert) => make("th", { scope: "col" }, expert, make("i", { class: swatch(expert) })));
  const rows = loads.map((load, one) => make("tr", one === layer ? { class: "current" } : {},
    make("th", { scope: "row" }, `Layer ${one}`), ...load.map((count) => make("td", { style: shade(count) }, count))));
  panel.replaceChildren(make("table", { class: "loads" },
    make("caption", {}, `Bytes of each expert, ${nameSlot(slot)}`),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Layer"), ...head)),
    make("tbody", {}, ...rows)));
}

function render({ model, el }) {
  const root = make("div", { class: "text-view" });
  root.innerHTML = PAGE;
  el.replaceChildren(root);
  const find = (selector) => root.querySelector(selector);
  const [text, chips, legend] = [find("textarea"), find(".chips"), find(".legend")];
  const selects = [...root.querySelectorAll("select")];
  for (const control of [text, ...selects]) control.setAttribute(QUIET, "");
  let [frame, typing, answer] = [0, 0, 0];
  let unanswered = false;
  let [current, only] = [0, null]; // the byte that the keyboard is on, the expert that alone is shown

  const readState = () => Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));

  function fillSelect(select, options, value) {
    if (select.options.length !== options.length) {
      select.replaceChildren(...options.map(([key, name]) => make("option", { value: key }, name)));
    }
    select.value = value;
  }

  function draw() {
    find(".refused").textContent = model.get("refused") ?? "";
    frame = 0;
    const state = readState();
    const empty = state.error || !state.pieces.length;
    if (!typing && text.value !== state.text) text.value = state.text;
    if (find(".summary").textContent !== summarise(state)) find(".summary").textContent = summarise(state);
    for (const node of root.querySelectorAll(".controls, .chips, .byte, .hint, .legend, .scroll")) node.hidden = empty;
    if (empty) return;
    const { layer, slot } = placeOf(state);
    current = Math.min(current, state.pieces.length - 1);
    if (only >= state.num_experts) only = null;
    const slots = state.experts[layer][0].map((_, one) => [one, nameSlot(one)]);
    fillSelect(selects[0], state.experts.map((_, one) => [one, one]), layer);
    fillSelect(selects[1], [...slots, [-1, nameSlot(-1)]], slot);
    const focused = chips.contains(document.activeElement);
    chips.replaceChildren(...state.pieces.map((_, byte) => makeChip(state, layer, slot, byte, only)));
    chips.children[current].tabIndex = 0;
    if (focused) chips.children[current].focus();
    drawByte(find(".byte"), state, current);
    drawLegend(loadOf(state, layer, slot));
    drawLoads(find(".scroll"), state, layer, slot);
  }

  // The buttons stay, so that a press keeps the focus.
  function drawLegend(load) {
    if (legend.children.length !== load.length) legend.replaceChildren(...load.map((_, expert) =>
      button({ class: swatch(expert), "data-expert": expert }, make("i"), make("b", {}, expert), make("span"))));
    load.forEach((count, expert) => {
      const entry = legend.children[expert];
      entry.lastChild.textContent = `${count}`;
      entry.setAttribute("aria-label", `expert ${expert}, ${count} ${count === 1 ? "byte" : "bytes"}`);
      entry.setAttribute("aria-pressed", expert === only);
    });
  }

  // One drawing a frame, however many traits have changed.
  const schedule = () => { frame ||= requestAnimationFrame(draw); };

  // The kernel says which text its reading belongs to; where it never does, there is no kernel.
  function awaitAnswer() {
    clearTimeout(answer);
    unanswered = false;
    if (model.get("read_text") !== model.get("text")) {
      answer = setTimeout(() => { unanswered = true; drawNotice(); }, ANSWER_MS);
    }
    drawNotice();
  }

  function drawNotice() {
    const waiting = model.get("read_text") !== model.get("text");
    const recorded = `No kernel: this is a recorded reading of “${model.get("read_text").slice(0, 60)}”.`;
    find(".notice").textContent = unanswered ? recorded : waiting ? "Reading …" : "";
  }

  function inspect(byte) {
    const state = readState();
    if (!(byte >= 0 && byte < state.pieces.length)) return;
    chips.children[current].tabIndex = -1;
    current = byte;
    chips.children[current].tabIndex = 0;
    drawByte(find(".byte"), state, byte);
  }

  text.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      typing = 0;
      model.set("text", text.value.toWellFormed?.() ?? text.value);
      model.save_changes();
    }, TYPING_MS);
  });
  for (const select of selects) {
    select.addEventListener("change", () => { model.set(select.name, Number(select.value)); model.save_changes(); });
  }
  const byteOf = (event) => Number(event.target.closest("[data-byte]")?.dataset.byte ?? NaN);
  chips.addEventListener("focusin", (event) => inspect(byteOf(event)));
  chips.addEventListener("pointerover", (event) => inspect(byteOf(event)));
  chips.addEventListener("keydown", (event) => {
    const last = chips.children.length - 1;
    const [back, on] = [current - 1, current + 1];
    const next = { ArrowLeft: back, ArrowUp: back, ArrowRight: on, ArrowDown: on, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    chips.children[Math.max(0, Math.min(last, next))].focus();
  });
  legend.addEventListener("click", (event) => {
    const entry = event.target.closest("[data-expert]");
    if (!entry) return;
    only = only === Number(entry.dataset.expert) ? null : Number(entry.dataset.expert);
    schedule();
  });
  for (const name of TRAITS) model.on(`change:${name}`, schedule);
  for (const name of ["text", "read_text"]) model.on(`change:${name}`, awaitAnswer);
  draw();
  awaitAnswer();
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, schedule);
    for (const name of ["text", "read_text"]) model.off(`change:${name}`, awaitAnswer);
    cancelAnimationFrame(frame);
    clearTimeout(typing);
    clearTimeout(answer);
    el.replaceChildren();
  };
}

export default { render };
