const page = document.documentElement;
const button = document.querySelector("button.theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (page.dataset.theme ? page.dataset.theme === "dark" : system.matches);
const say = () => button.setAttribute("aria-pressed", isDark());

button.addEventListener("click", () => {
  page.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("moe-lab-theme", page.dataset.theme); } catch { /* it lasts for this page only */ }
  say();
});
system.addEventListener("change", say);
button.hidden = false;
say();

const form = document.querySelector("form.search");
const words = form.querySelector("input");
form.hidden = false;
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const address = `${form.dataset.page}#${encodeURIComponent(words.value)}`;
  location.href = address;
});
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable], .widget");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  words.focus();
});

// What scrolls sideways is reached by keyboard too; what does not is no stop on the way.
const wide = document.querySelectorAll("main pre, main .wide");
const mark = () => wide.forEach((box) => {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
});
addEventListener("resize", mark);
mark();
