// A slider next to each number of a new run; which side of the form was changed last; the plan as text for screen readers.
const form = document.querySelector("form#draft");
const SPAN = 1000;

const scales = {
  linear: { to: (value) => value, from: (value) => value },
  log2: { to: Math.log2, from: (value) => 2 ** value },
  log10: { to: Math.log10, from: (value) => 10 ** value },
};

function parts(knob) {
  const { scale, low, high, step } = knob.dataset;
  return {
    number: knob.querySelector("input[type=number]"), range: knob.querySelector("[data-range]"), clear: knob.querySelector("[data-unset]"),
    why: knob.querySelector(".decided"), scale, low: Number(low), high: Number(high), step: Number(step),
  };
}

// The nearest value that people would write: whole powers of 2, one or two digits of a rate, whole steps.
function rounded(value, { scale, step }) {
  if (scale === "log2") return 2 ** Math.round(Math.log2(value));
  if (scale === "log10") return Number(value.toPrecision(value / 10 ** Math.floor(Math.log10(value)) < 2 ? 2 : 1));
  return Number((Math.round(value / step) * step).toFixed(6));
}

function valueOf(range, knob) {
  const { to, from } = scales[knob.scale];
  const share = Number(range.value) / SPAN;
  return rounded(from(to(knob.low) + share * (to(knob.high) - to(knob.low))), knob);
}

function place(value, knob) {
  const { to } = scales[knob.scale];
  const within = Math.min(knob.high, Math.max(knob.low, value));
  return Math.round((SPAN * (to(within) - to(knob.low))) / (to(knob.high) - to(knob.low)));
}

// The slider shows the number; if the field is empty, the value from the plan.
function refresh(element) {
  const knob = parts(element), planned = Number(knob.why?.dataset.planned ?? NaN);
  const isOpen = knob.number.value === "";
  element.classList.toggle("unset", isOpen);
  knob.number.toggleAttribute("aria-invalid", false);
  if (knob.why?.classList.contains("wrong")) knob.number.setAttribute("aria-invalid", "true");
  if (knob.clear) knob.clear.hidden = isOpen;
  if (Number.isFinite(planned) && isOpen) knob.number.placeholder = String(Number(planned.toPrecision(4)));
  if (!knob.range) return;
  knob.range.hidden = false;
  const value = isOpen ? planned : Number(knob.number.value);
  if (document.activeElement !== knob.range || isOpen) {
    if (Number.isFinite(value)) knob.range.value = String(place(value, knob));
  }
  knob.range.setAttribute("aria-valuetext", isOpen ? `${Luthier.t("decided for you")}${Number.isFinite(planned) ? `: ${planned}` : ""}` : knob.number.value);
}

function refreshAll() {
  for (const element of form.querySelectorAll(".knob")) if (element.querySelector("input[type=number]")) refresh(element);
}

function tell() {
  const notice = form.querySelector("[data-notice]")?.textContent.trim() ?? "", status = form.querySelector("[data-status]");
  if (status && status.textContent !== notice) status.textContent = notice;
}

if (form) {
  const side = form.querySelector("[data-side]");
  if ("restored" in form.dataset) side.value = "text"; // after a reload the text counts, until a field is changed
  form.addEventListener("input", (event) => {
    side.value = event.target.name === "text" ? "text" : "fields";
    const element = event.target.closest(".knob");
    if (!element?.querySelector("input[type=number]")) return;
    const knob = parts(element);
    if (event.target === knob.range) knob.number.value = String(valueOf(knob.range, knob));
    refresh(element);
  });
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-unset]");
    if (!button) return;
    const { number } = parts(button.closest(".knob"));
    number.value = "";
    number.dispatchEvent(new Event("input", { bubbles: true }));
    number.focus();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
  });
  // An answer to the form as it was before would undo what has been typed since; the change is sent by itself.
  let numChanges = 0;
  const changesAt = new WeakMap();
  form.addEventListener("input", () => { numChanges += 1; });
  document.addEventListener("htmx:beforeRequest", ({ detail }) => changesAt.set(detail.xhr, numChanges));
  document.addEventListener("htmx:beforeSwap", ({ detail }) => {
    const isPlan = detail.requestConfig.path === "/runs/new/plan";
    if (isPlan && changesAt.get(detail.xhr) !== numChanges) detail.shouldSwap = false;
  });
  document.addEventListener("htmx:afterSettle", () => { refreshAll(); tell(); });
  refreshAll();
}
