// Keyboard shortcuts for raters: each key takes the choice that shows it; Enter continues. A key that is held down, or
// pressed while the next item is loading, does nothing, so nobody rates an item that was not on the screen yet.
const form = document.querySelector(".rating-form");
const scales = [...document.querySelectorAll("[data-scale]")];
let isUnderWay = false;
let current = 0;

const ARROWS = { ArrowLeft: "a", ArrowRight: "b" };

function choose(input) {
  input.checked = true;
  input.focus({ preventScroll: true });
}

function score(key) {
  const scale = scales[current];
  choose(scale.querySelector(`input[value="${key}"]`));
  current = Math.min(current + 1, scales.length - 1);
}

for (const [place, scale] of scales.entries()) {
  scale.addEventListener("click", () => { current = Math.min(place + 1, scales.length - 1); });
}
current = Math.max(0, scales.findIndex((scale) => !scale.querySelector("input:checked")));

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.repeat || isUnderWay || event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  const isWriting = at.closest?.("textarea");
  if (isWriting && event.key === "Escape") { at.blur(); return; }
  if (isWriting || at.closest?.("summary, a, button")) return;
  const key = ARROWS[event.key] ?? event.key.toLowerCase();
  const button = document.querySelector(`[data-press="${CSS.escape(key)}"]`);
  const radio = document.querySelector(`[data-key-of="${CSS.escape(key)}"]`);
  if (button) { event.preventDefault(); button.click(); }
  else if (radio) { event.preventDefault(); choose(radio); }
  else if (scales.length && /^[1-5]$/.test(key)) { event.preventDefault(); score(key); }
  else if (form && key === "enter") { event.preventDefault(); form.requestSubmit(document.querySelector("#next")); }
  else if (form && key === "c") {
    event.preventDefault();
    const comment = document.querySelector("#comment");
    comment.closest("details").open = true;
    comment.focus();
  }
});

document.addEventListener("submit", (event) => {
  if (isUnderWay) event.preventDefault();
  isUnderWay = true;
});
addEventListener("pageshow", () => { isUnderWay = false; });
