// Shared by all pages: the theme, relative times, keyboard navigation, confirmation of forms.
const root = document.documentElement, RETRY_MS = 5000, NUMBERS = /\b\d[\d.,]*\b/g;

// Texts of scripts in the language of the page: `Luthier.t("{count} files", { count })`. In English they are themselves.
const translations = JSON.parse(document.querySelector('meta[name="luthier-words"]')?.content ?? "{}");
window.Luthier = Object.assign(window.Luthier ?? {}, {
  t: (text, values = {}) => (translations[text] ?? text).replace(/\{(\w+)\}/g, (hole, name) => (name in values ? String(values[name]) : hole)),
});
const { t } = window.Luthier;

// HTMX is the largest script, and no first frame needs it: it is requested here, and not by the page. It waits for
// DOMContentLoaded, which has passed by then: what it would do there it does at once. The event `load` waits for it.
function loadHtmx(address) {
  const script = Object.assign(document.createElement("script"), { src: address, async: true, fetchPriority: "low" });
  const listen = document.addEventListener;
  let hasPassed = false;
  listen.call(document, "DOMContentLoaded", () => { hasPassed = true; }, { once: true });
  document.addEventListener = (type, run, ...options) => {
    if (hasPassed && type === "DOMContentLoaded") queueMicrotask(run);
    else listen.call(document, type, run, ...options);
  };
  for (const end of ["load", "error"]) script.addEventListener(end, () => { delete document.addEventListener; });
  document.head.append(script);
}
const htmxAddress = document.querySelector("script[data-htmx]")?.dataset.htmx;
if (htmxAddress) loadHtmx(htmxAddress);

// The server writes the theme into the page, so that its first frame has it: a cookie tells it the choice.
function setTheme(theme) {
  root.dataset.theme = theme;
  document.cookie = `luthier_theme=${theme}; path=/; max-age=${400 * 24 * 3600}; samesite=lax${location.protocol === "https:" ? "; secure" : ""}`;
  document.dispatchEvent(new CustomEvent("luthier:theme"));
}
try { // earlier versions kept the choice in the browser alone
  const earlier = localStorage.getItem("luthier-theme");
  localStorage.removeItem("luthier-theme");
  if (!root.dataset.theme && /^(light|dark)$/.test(earlier)) setTheme(earlier);
} catch { /* storage may be forbidden: the system's theme it is */ }
for (const button of document.querySelectorAll("[data-theme-switch]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    setTheme(isDark ? "light" : "dark");
  });
}

function relative(seconds) {
  const length = Math.abs(seconds);
  for (const [unit, name, full] of [[86400, "day", "day"], [3600, "h", "hour"], [60, "min", "minute"]]) {
    if (length >= unit) {
      const count = Math.floor(length / unit);
      if (root.lang !== "en") return new Intl.RelativeTimeFormat(root.lang).format(Math.sign(seconds) * count, full);
      const words = `${count} ${name}${name === "day" && count > 1 ? "s" : ""}`;
      return seconds > 0 ? `in ${words}` : `${words} ago`;
    }
  }
  return seconds <= 5 ? t("just now") : t("in {count} s", { count: Math.floor(length) });
}

function refreshTimes() {
  if (document.hidden) return;
  for (const time of document.querySelectorAll("time[datetime]")) {
    const words = relative((Date.parse(time.dateTime) - Date.now()) / 1000);
    if (time.textContent !== words) time.textContent = words;
  }
}
setInterval(refreshTimes, 20000);

// `g` and a letter go to a page; `?` lists the keys. Ignored while the user types in a field.
let isGoing = false;
document.addEventListener("keydown", (event) => {
  const at = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || at.closest?.("input, textarea, select, [contenteditable]")) return;
  if (event.key === "?") {
    const help = document.querySelector("dialog#keys");
    if (help) { help.open ? help.close() : help.showModal(); }
    return;
  }
  if (isGoing) {
    isGoing = false;
    const way = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    if (way) { event.preventDefault(); location.href = way.href; }
  } else if (event.key === "g") {
    isGoing = true;
    setTimeout(() => { isGoing = false; }, 1200);
  }
});

// The explanation of a word opens on hover, too; by click, tap and keys it opens without this script.
let hovering = 0;
document.addEventListener("pointerover", (event) => {
  const ask = event.pointerType === "mouse" ? event.target.closest?.(".term") : null;
  const open = document.querySelector(".term-tip[data-by-hover]:popover-open");
  clearTimeout(hovering);
  if (open && open.parentElement !== ask) hovering = setTimeout(() => { open.hidePopover(); delete open.dataset.byHover; }, 200);
  const tip = ask?.querySelector(".term-tip");
  if (!tip || tip.matches(":popover-open")) return;
  hovering = setTimeout(() => { tip.dataset.byHover = ""; tip.showPopover({ source: ask.querySelector("button") }); }, 150);
});

document.addEventListener("click", (event) => {
  const tip = event.target.closest?.(".term-ask")?.parentElement.querySelector(".term-tip[data-by-hover]:popover-open");
  if (tip) { event.preventDefault(); delete tip.dataset.byHover; } // a click keeps open what hovering has opened
});

// A page is come back to by a reload, by the history, or by the sign-in that one of its own requests has led to: then it
// shows again what this tab has kept. The note of the last is good for half an hour, as forms are on the server.
const LEFT = "luthier-left", LEFT_MS = 1800000;
function isReturnFromSignIn() {
  try {
    const [at, from] = (sessionStorage.getItem(LEFT) ?? "").split(" ");
    if (from !== `${location.pathname}${location.search}`) return false;
    sessionStorage.removeItem(LEFT);
    return Date.now() - Number(at) < LEFT_MS;
  } catch { return false; } // storage may be forbidden
}
const isReturn = performance.getEntriesByType("navigation")[0]?.type !== "navigate" || isReturnFromSignIn();

function noteLeft() {
  try { sessionStorage.setItem(LEFT, `${Date.now()} ${location.pathname}${location.search}`); } catch { /* not kept, then */ }
}
// Parts of a page that request themselves are led to the sign-in, too.
document.addEventListener("htmx:beforeOnLoad", ({ detail }) => { if (detail.xhr.status === 401 && detail.requestConfig.verb === "get") noteLeft(); });

// Requests of our scripts carry the address of the current page, so that a sign-in can return to it.
window.Luthier = Object.assign(window.Luthier ?? {}, {
  isReturn,
  async ask(address, options = {}) {
    const answer = await fetch(address, { ...options, headers: { ...options.headers, "HX-Current-URL": location.href } });
    if (answer.status !== 401) return answer;
    noteLeft();
    location.href = answer.headers.get("HX-Redirect") ?? "/sign-in";
    return new Promise(() => {}); // the page is left
  },
});

// A form with `data-keep` survives a reload: what was entered is kept for this tab until it is sent. Its value names the
// fields to keep; empty: all of them, except passwords and files.
for (const form of document.querySelectorAll("form[data-keep]")) {
  const key = `luthier-form:${location.pathname}${location.search}:${form.id}`, names = form.dataset.keep.split(" ").filter(Boolean);
  const kept = () => [...form.elements].filter((one) => one.name && !/hidden|file|password|submit|button/.test(one.type) && (!names.length || names.includes(one.name)));
  const state = (one) => (/checkbox|radio/.test(one.type) ? one.checked : one.value);
  const store = (act) => { try { return act(sessionStorage); } catch { return null; } }; // storage may be forbidden
  const known = isReturn ? JSON.parse(store((one) => one.getItem(key)) ?? "[]") : [];
  for (const [place, one] of kept().entries()) {
    const [name, value] = known[place] ?? [];
    if (name !== one.name || value === state(one)) continue;
    if (typeof value === "boolean") one.checked = value; else one.value = value;
    form.dataset.restored = "";
    form.closest("details")?.setAttribute("open", ""); // what came back is seen
    one.dispatchEvent(new Event("input", { bubbles: true }));
    one.dispatchEvent(new Event("change", { bubbles: true }));
  }
  const save = () => store((one) => one.setItem(key, JSON.stringify(kept().map((field) => [field.name, state(field)]))));
  form.addEventListener("input", save);
  document.addEventListener("htmx:afterSettle", () => { if (form.isConnected) save(); });
  form.addEventListener("submit", () => store((one) => one.removeItem(key)));
}

// What a tab keeps is of the person who is signed in.
document.querySelector('form[action="/sign-out"]')?.addEventListener("submit", () => { try { sessionStorage.clear(); } catch { /* nothing was kept, then */ } });

// The switch of languages leads back to this very page, also where a script has changed its address since it was loaded.
const addressNow = () => `${location.pathname}${location.search}`, addressFirst = addressNow();
for (const form of document.querySelectorAll("form.language")) {
  form.addEventListener("submit", () => { if (addressNow() !== addressFirst) form.elements.back.value = addressNow(); });
}

// A form that is sent to a server that does not answer would end on the browser's own page of errors, without what was
// typed. Unless the server has just answered, a small file of it is requested first; where it is slow, the form is sent.
// What HTMX sends has its own message, see below.
const FRESH_MS = 5000, PATIENCE_MS = 5000;
let answeredAt = performance.now();
window.addEventListener("pageshow", ({ persisted }) => { if (persisted) answeredAt = -Infinity; }); // a page of the history
document.addEventListener("htmx:afterRequest", ({ detail }) => { answeredAt = detail.xhr.status > 0 && detail.xhr.status < 500 ? performance.now() : -Infinity; });
async function doesAnswer() {
  try {
    const answer = await fetch(document.querySelector('link[rel="icon"]').href, { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    return answer.status < 500; // 502 is of a proxy whose server is gone
  } catch (error) { return error.name === "TimeoutError"; }
}
const sendable = new WeakSet(), checked = new WeakSet();
document.addEventListener("submit", async (event) => {
  const form = event.target, by = event.submitter;
  if (sendable.has(form) || form.method === "dialog" || [form, by].some((one) => one?.matches("[hx-get], [hx-post]"))) return;
  if (navigator.onLine && performance.now() - answeredAt < FRESH_MS) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (checked.has(form)) return; // a double click
  checked.add(form);
  const isThere = await doesAnswer();
  checked.delete(form);
  if (!isThere) { answeredAt = -Infinity; showNoAnswer(form); return; }
  takeRefusalAway(form);
  sendable.add(form);
  form.requestSubmit(by); // its events come before the next line
  sendable.delete(form);
}, true);

// A form or button with `data-confirm` asks before an action that cannot be undone.
document.addEventListener("submit", (event) => {
  const words = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
  if (words && !confirm(words)) { event.preventDefault(); event.stopImmediatePropagation(); }
}, true);

// `data-copy` copies the text of the element that it names; where a browser forbids that (plain HTTP), it is selected.
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copy), words = button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    button.textContent = t("copied");
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = t("selected: press Ctrl+C");
  }
  setTimeout(() => { button.textContent = words; }, 1500);
});

// A part of a page that requests itself, again and again or when something has happened.
const requestsItself = ({ requestConfig, target }) => requestConfig.elt === target;
const isAskedAgain = (detail) => requestsItself(detail) && !/\bload\b/.test(detail.target.getAttribute("hx-trigger") ?? "");

// An error that came as a fragment of HTML is shown in place of the expected answer. A part that is requested again stays
// what it is while the server cannot answer: in the place of an error nothing would request it any more.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { status } = event.detail.xhr;
  if ((status === 429 || status >= 500) && isAskedAgain(event.detail)) return;
  if (status >= 400 && status !== 401) { event.detail.shouldSwap = true; event.detail.isError = false; }
});
const waiting = new WeakSet();
for (const end of ["htmx:responseError", "htmx:sendError"]) {
  document.addEventListener(end, ({ detail }) => {
    const { elt, triggeringEvent } = detail.requestConfig;
    if (!isAskedAgain(detail) || !triggeringEvent?.type.startsWith("luthier:") || waiting.has(elt)) return;
    waiting.add(elt); // what happens once is requested once more; polls go on by themselves
    setTimeout(() => { waiting.delete(elt); if (elt.isConnected) window.htmx.trigger(elt, triggeringEvent.type); }, RETRY_MS);
  });
}

// What a person has asked for is answered in any case. An error that would take the place of the form that it is about, and
// a server that does not answer, are said above that part of the page, which stays as it is, with what was typed.
const GESTURES = /^(click|submit|change|input)$/;
const isByPerson = ({ requestConfig }) => GESTURES.test(requestConfig.triggeringEvent?.type ?? "");
function takeRefusalAway(target) {
  if (target.previousElementSibling?.matches("[data-refusal]")) target.previousElementSibling.remove();
}
function showRefusal(target, nodes) {
  const box = document.createElement("div");
  box.dataset.refusal = "";
  box.append(...nodes);
  takeRefusalAway(target);
  target.before(box);
  box.scrollIntoView({ block: "nearest" });
}
function showNoAnswer(target) {
  const box = Object.assign(document.createElement("div"), { className: "message bad" }), what = document.createElement("strong");
  what.textContent = t("The server does not answer.");
  box.setAttribute("role", "alert");
  box.append(what, " ", t("Check the connection, then try again."));
  showRefusal(target, [box]);
}
// Whether an answer is an error alone, without the part of the page that it would replace.
function leavesNothing({ xhr, target, requestConfig: { elt } }) {
  const swap = elt.closest("[hx-swap]")?.getAttribute("hx-swap") ?? "";
  return xhr.getResponseHeader("luthier-error") !== null && (swap.startsWith("outerHTML") || target.contains(elt));
}
document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  const { status } = detail.xhr;
  if (status < 400) takeRefusalAway(detail.target);
  if (status < 400 || status === 401 || !isByPerson(detail)) return;
  const isOfProxy = status >= 500 && detail.xhr.getResponseHeader("luthier-error") === null && /<html/i.test(detail.serverResponse);
  if (!isOfProxy && !leavesNothing(detail)) return;
  detail.shouldSwap = false;
  detail.isError = false;
  if (isOfProxy) showNoAnswer(detail.target);
  else showRefusal(detail.target, new DOMParser().parseFromString(detail.serverResponse, "text/html").body.childNodes);
});
for (const end of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(end, ({ detail }) => { if (isByPerson(detail)) showNoAnswer(detail.target); });
}

// What a person has scrolled, opened or focused stays so where a part of the page requests itself and is made again.
function* keptParts() { // each with a name that it has in the new part, too
  const times = new Map();
  for (const one of document.querySelectorAll("main details, main .scroll, main .log-tail")) {
    const name = `${one.closest("[id]").id} ${one.getAttribute("aria-label") ?? one.querySelector("summary")?.textContent.replace(NUMBERS, "")}`;
    times.set(name, (times.get(name) ?? 0) + 1);
    yield [`${name} ${times.get(name)}`, one];
  }
}
const signOf = (one) => [one.localName, one.closest("[id]")?.id, one.form?.getAttribute("action"), one.localName === "summary" ? one.textContent.replace(NUMBERS, "") : "", ...["href", "formaction", "name", "aria-label"].map((name) => one.getAttribute(name))].join(" ");
document.addEventListener("click", (event) => { event.target.closest?.("summary")?.parentElement.setAttribute("data-by-hand", ""); });
let kept = null;
document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  kept = null;
  if (!requestsItself(detail) || !detail.shouldSwap) return;
  const parts = new Map([...keptParts()].map(([name, one]) => [name, { one, left: one.scrollLeft, top: one.scrollTop }]));
  const focused = document.activeElement ?? document.body;
  kept = { parts, focused, sign: signOf(focused) };
});
document.addEventListener("htmx:afterSettle", () => {
  if (!kept) return;
  const { parts, focused, sign } = kept;
  kept = null;
  for (const [name, one] of keptParts()) {
    const was = parts.get(name);
    if (!was || was.one === one) continue;
    if (one.localName !== "details") one.scrollTo(was.left, was.top);
    else if ("byHand" in was.one.dataset) { one.open = was.one.open; one.dataset.byHand = ""; }
  }
  if (focused.isConnected || document.activeElement !== document.body) return;
  [...document.querySelectorAll(`main ${focused.localName}`)].find((one) => signOf(one) === sign)?.focus({ preventScroll: true });
});

// HTMX logs an aborted request to the console when a newer one replaced it or the page was left. That is no error;
// faults of the server or the network have other messages, which stay.
const tell = console.error;
console.error = (...words) => {
  if (!/^htmx:(afterRequest|sendAbort)\b/.test(String(words[0]))) tell.apply(console, words);
};
