// Live page of a run: adds new points to its curves, updates figures in place, and fetches parts of the page again when
// something has happened. Polls less often while nothing happens, not at all in a hidden tab or after the end, and
// continues from the last position when the server comes back.
const OFTEN_MS = 2000, SELDOM_MS = 20000, MOST_WAIT_MS = 30000;
const page = document.querySelector("[data-run]");
const contact = document.querySelector("[data-contact]");
const seenLayouts = new Set();
let position = 0, standing = page.dataset.standing, wait = OFTEN_MS, failures = 0, timer = 0, isAsking = false, isOver = false, isToBegin = false;

function say(words) {
  if (contact.textContent !== words) contact.textContent = words;
}

function later(milliseconds) {
  clearTimeout(timer);
  timer = document.hidden || isOver ? 0 : setTimeout(ask, milliseconds);
}

function tell(selector, name) {
  if (!window.htmx && name === "luthier:changed") location.reload();
  document.querySelector(selector)?.dispatchEvent(new CustomEvent(name));
}

function draw(answer) {
  const charts = window.Luthier?.charts;
  if (!charts) return;
  if (answer.from_step !== null && !answer.is_whole) charts.forgetAfter(answer.from_step);
  for (const [chart, series] of Object.entries(answer.points)) {
    for (const [name, points] of Object.entries(series)) (answer.is_whole ? charts.replace : charts.append)(chart, name, points);
  }
  if (answer.clock.length || answer.is_whole) charts.clock(answer.clock, answer.is_whole);
  if (answer.marks.length) charts.mark("loss", answer.marks);
  charts.refresh();
}

function show(answer) {
  for (const [name, words] of Object.entries(answer.words)) {
    const place = document.querySelector(`[data-live="${name}"]`);
    if (place && place.textContent !== words) place.textContent = words;
  }
  const bar = document.querySelector("[data-progress]");
  if (bar) bar.value = answer.num_done;
}

// Series that the page does not have yet: its charts are made again, once for each such change.
function needsOtherCharts(answer) {
  const layout = new Set((document.querySelector("#run-charts")?.dataset.layout ?? "").split(","));
  if (!answer.layout || answer.layout.split(",").every((one) => layout.has(one)) || seenLayouts.has(answer.layout)) return false;
  seenLayouts.add(answer.layout);
  return true;
}

async function ask() {
  if (isAsking || isOver) return;
  isAsking = true;
  try {
    const answer = await Luthier.ask(`${page.dataset.run}/series?after=${position}`, { headers: { Accept: "application/json" } });
    if (answer.status === 404) { isOver = true; say(Luthier.t("This run was removed.")); return; }
    if (!answer.ok) throw new Error(String(answer.status));
    take(await answer.json());
  } catch {
    failures += 1;
    const pause = Math.min(MOST_WAIT_MS, OFTEN_MS * 2 ** (failures - 1));
    say(Luthier.t("The server does not answer. Trying again every {seconds} s; nothing is lost.", { seconds: Math.round(pause / 1000) }));
    later(pause);
  } finally {
    isAsking = false;
  }
}

function take(answer) {
  failures = 0;
  say("");
  if (answer.has_begun && !("begun" in page.dataset)) { location.reload(); return; } // its plan, its charts, all of it
  const isNew = Object.keys(answer.points).length > 0 || answer.is_more || answer.standing !== standing;
  wait = isNew ? OFTEN_MS : Math.min(SELDOM_MS, wait * 1.5);
  if (needsOtherCharts(answer)) {
    tell("#run-charts", "luthier:charts");
  } else {
    position = answer.position;
    draw(answer);
  }
  show(answer);
  if (isNew && window.htmx) tell("#run-log", "luthier:log");
  // The part of the page that says so may have been lost, or made just before: it is asked for until it shows this state.
  const isStale = Boolean(window.htmx) && (document.querySelector("#run-now")?.dataset.standing ?? answer.standing) !== answer.standing;
  if (answer.standing !== standing || isStale || (answer.is_more && !answer.is_whole && window.htmx)) tell("#run-now", "luthier:changed");
  standing = answer.standing;
  isOver = answer.is_over && !isToBegin && !isStale;
  if (isToBegin) { isToBegin = false; position = 0; wait = 0; }
  later(wait);
}

// The end of the log is shown, unless someone has scrolled up to read.
let isAtEnd = true;
function toTheEnd() {
  for (const tail of document.querySelectorAll(".log-tail")) if (isAtEnd) tail.scrollTop = tail.scrollHeight;
}
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.target.id !== "run-log") return;
  isAtEnd = [...document.querySelectorAll(".log-tail")].every((tail) => tail.scrollHeight - tail.scrollTop - tail.clientHeight < 40);
});
document.addEventListener("htmx:afterSettle", toTheEnd);
toTheEnd();

// Charts that were just made have only the points of the first drawing: send them all.
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.target.id !== "run-charts" && !event.target.querySelector?.("#run-charts")) return;
  if (isAsking) isToBegin = true;
  else { isOver = false; position = 0; ask(); }
});

document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else { wait = OFTEN_MS; ask(); } });
Promise.resolve(window.Luthier?.charts.ready).then(ask);
