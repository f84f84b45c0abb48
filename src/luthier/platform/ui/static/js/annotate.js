// Keyboard shortcuts for annotation: each key presses the button that shows it. Keys pressed while the next row is still
// loading do nothing, so nobody decides on a row that was not on the screen yet.
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

// Ask before leaving a page with an unsaved edit.
function hasBegun() {
  return document.querySelector('#desk [data-edit="begun"]') !== null || [...document.querySelectorAll("#desk [data-edit] textarea")].some((one) => one.value !== one.defaultValue);
}
document.addEventListener("click", (event) => {
  if (!event.target.closest?.("#desk a") || !hasBegun() || confirm(Luthier.t("Leave without saving the edit?"))) return;
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);
document.addEventListener("submit", () => { if (!window.htmx) isUnderWay = true; });
addEventListener("beforeunload", (event) => { if (hasBegun() && !isUnderWay) event.preventDefault(); });

// Only requests that replace the row block the keys, not the polling for news.
document.addEventListener("htmx:beforeRequest", (event) => { if (event.detail.target?.id === "desk") isUnderWay = true; });
document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.target?.id === "desk") isUnderWay = false; });
document.addEventListener("htmx:afterSettle", () => {
  const desk = document.querySelector("#desk"), status = document.querySelector("#said");
  const title = desk?.querySelector("#row-title")?.textContent.trim() ?? "";
  if (desk && status && desk.dataset.notice) status.textContent = `${desk.dataset.notice}. ${title}`;
});

// Poll for what other people decided on this row in the meantime.
setInterval(() => {
  const desk = document.querySelector("#desk");
  if (document.hidden || isUnderWay || !desk || !desk.dataset.news || !window.htmx || desk.querySelector("[data-edit]")) return;
  window.htmx.ajax("GET", desk.dataset.news, { target: "#news", swap: "innerHTML" });
}, NEWS_MS);
