const index = JSON.parse(document.getElementById("index").textContent);
for (const entry of index) entry.lower = [entry.page, entry.heading, entry.text].map((text) => text.toLowerCase());
const [input, count, list] = ["input.words", ".count", ".results"].map((name) => document.querySelector(name));
const MOST = 50;
const AROUND = 90;

// Every word must occur; in a heading it counts more than in the text, there more than in the title, and together most.
function rank(entry, terms) {
  let score = terms.length > 1 && entry.lower.some((text) => text.includes(terms.join(" "))) ? 20 : 0;
  for (const term of terms) {
    const places = entry.lower.map((text) => text.includes(term));
    if (!places.some(Boolean)) return 0;
    score += 1 * places[0] + 10 * places[1] + 2 * places[2];
  }
  return score;
}

function excerpt(entry, terms) {
  const at = Math.max(0, Math.min(...terms.map((term) => entry.lower[2].indexOf(term)).filter((place) => place >= 0)));
  const start = Number.isFinite(at) ? Math.max(0, at - AROUND / 2) : 0;
  const piece = entry.text.slice(start, start + 2 * AROUND);
  return (start ? "… " : "") + piece + (start + 2 * AROUND < entry.text.length ? " …" : "");
}

// The words of the reader, marked; never as HTML.
function marked(text, terms) {
  const line = document.createElement("p");
  const lower = text.toLowerCase();
  for (let at = 0; at < text.length;) {
    const next = terms.map((term) => [lower.indexOf(term, at), term.length]).filter(([place]) => place >= 0)
      .sort((a, b) => a[0] - b[0] || b[1] - a[1])[0];
    const [place, length] = next ?? [text.length, 0];
    line.append(text.slice(at, place));
    if (next) line.append(Object.assign(document.createElement("mark"), { textContent: text.slice(place, place + length) }));
    at = place + length;
  }
  return line;
}

function search() {
  const terms = [...new Set(input.value.toLowerCase().split(/\s+/).filter(Boolean))];
  const found = terms.length ? index.map((entry) => [rank(entry, terms), entry]).filter(([score]) => score) : [];
  found.sort((a, b) => b[0] - a[0]);
  list.replaceChildren(...found.slice(0, MOST).map(([, entry]) => {
    const item = document.createElement("li");
    const link = Object.assign(document.createElement("a"), { href: entry.address });
    link.textContent = entry.heading === entry.page ? entry.page : `${entry.page}: ${entry.heading}`;
    item.append(link, marked(excerpt(entry, terms), terms));
    return item;
  }));
  const places = found.length === 1 ? "place" : "places";
  const shown = found.length > MOST ? `, the first ${MOST} are shown.` : ".";
  count.textContent = terms.length ? `${found.length} ${places}${shown}` : "";
}

function read() {
  try { input.value = decodeURIComponent(location.hash.slice(1)); } catch { input.value = location.hash.slice(1); }
  search();
}
input.addEventListener("input", () => { history.replaceState(null, "", `#${encodeURIComponent(input.value)}`); search(); });
addEventListener("hashchange", read);
read();
input.focus();
