// Keys of the annotation desk: each presses the button that bears it. A decision is never taken on a row that was not on
// the screen yet: keys pressed while the next row is under way do nothing.
const NEWS_MS = 10000;
let isUnderWay = false;
let isGoing = 0;

function pressed(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return "mod+Enter";
  return event.ctrlKey || event.metaKey || event.altKey ? "" : event.key;
}

document.addEventListener("keydown", (event) => {
  const key = pressed(event);
  if (event.defaultPrevented || event.repeat || !key || document.querySelector("dialog[open]")) return;
  const isWriting = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (isWriting && !["mod+Enter", "Escape"].includes(key)) return;
  const wasGoing = Date.now() - isGoing < 1200; // `g` and a letter lead to another page
  isGoing = key === "g" && !wasGoing ? Date.now() : 0;
  if (wasGoing || isUnderWay) return;
  const button = document.querySelector(`#desk [data-press="${CSS.escape(key)}"]`);
  if (!button) return;
  event.preventDefault();
  button.click();
});

// An edit that was begun is not left by a slip of the hand.
function hasBegun() {
  return document.querySelector('#desk [data-edit="begun"]') !== null || [...document.querySelectorAll("#desk [data-edit] textarea")].some((one) => one.value !== one.defaultValue);
}
document.addEventListener("click", (event) => {
  if (!event.target.closest?.("#desk a") || !hasBegun() || confirm("Leave the edit without keeping it?")) return;
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);
document.addEventListener("submit", () => { if (!window.htmx) isUnderWay = true; });
addEventListener("beforeunload", (event) => { if (hasBegun() && !isUnderWay) event.preventDefault(); });

// Only what swaps the desk holds keys back, not the asking for news.
document.addEventListener("htmx:beforeRequest", (event) => { if (event.detail.target?.id === "desk") isUnderWay = true; });
document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.target?.id === "desk") isUnderWay = false; });
document.addEventListener("htmx:afterSettle", () => {
  const desk = document.querySelector("#desk"), told = document.querySelector("#said");
  const title = desk?.querySelector("#row-title")?.textContent.trim() ?? "";
  if (desk && told && desk.dataset.told) told.textContent = `${desk.dataset.told}. ${title}`;
});

// What others say of this row meanwhile.
setInterval(() => {
  const desk = document.querySelector("#desk");
  if (document.hidden || isUnderWay || !desk || !desk.dataset.news || !window.htmx || desk.querySelector("[data-edit]")) return;
  window.htmx.ajax("GET", desk.dataset.news, { target: "#news", swap: "innerHTML" });
}, NEWS_MS);
