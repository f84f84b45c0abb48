// The map of prompts: what the nearest point says while one points at it, and a click opens its group.
const REACH = 14; // in units of the drawing

async function start(figure) {
  figure.dataset.started = "";
  const answer = await Luthier.ask(figure.dataset.points, { headers: { Accept: "application/json" } });
  if (!answer.ok) return;
  const { scale: [left, across, top, down], points } = await answer.json();
  for (const point of points) { point.px = left + point.x * across; point.py = top + point.y * down; }
  const svg = figure.querySelector("svg"), mark = svg.querySelector(".pointed"), box = figure.querySelector(".hovered");
  const [title, words] = [box.querySelector("strong"), box.querySelector("p")];

  function nearest(event) {
    const frame = svg.getBoundingClientRect(), units = svg.viewBox.baseVal.width / frame.width;
    const x = (event.clientX - frame.left) * units, y = (event.clientY - frame.top) * units;
    let found = null, least = (REACH * Math.max(1, units)) ** 2;
    for (const point of points) {
      const distance = (point.px - x) ** 2 + (point.py - y) ** 2;
      if (distance < least) { least = distance; found = point; }
    }
    return found;
  }

  function show(point) {
    for (const one of [mark, box]) one.toggleAttribute("hidden", !point);
    svg.classList.toggle("at-point", Boolean(point));
    if (!point) return;
    mark.setAttribute("cx", point.px);
    mark.setAttribute("cy", point.py);
    title.textContent = Luthier.t("Line {line}", { line: point.line });
    words.textContent = point.text;
    // On the other half of the plane, so that it hides nothing that is near.
    box.classList.toggle("at-left", point.px > svg.viewBox.baseVal.width / 2);
  }

  svg.addEventListener("pointermove", (event) => show(nearest(event)));
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("click", (event) => {
    const point = nearest(event);
    if (!point) return;
    show(point);
    document.getElementById(`group-${point.group}`)?.click();
  });
}

function startAll() {
  for (const figure of document.querySelectorAll(".prompt-map:not([data-started])")) {
    start(figure);
    window.htmx?.process(figure.closest("#answer"));
  }
}
startAll();
// The map comes by a script that looks again until it is there.
new MutationObserver(startAll).observe(document.querySelector("#main"), { childList: true, subtree: true });
