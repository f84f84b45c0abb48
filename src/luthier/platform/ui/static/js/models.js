// The pages on models: a slider next to each number that has one, and polling of work in progress.
const LOOK_MILLISECONDS = 1500;

for (const slider of document.querySelectorAll("[data-slides]")) {
  const number = document.querySelector(slider.dataset.slides);
  slider.hidden = false;
  slider.addEventListener("input", () => { number.value = slider.value; });
  number.addEventListener("input", () => { slider.value = number.value; });
}

// The element is fetched again as long as it asks for that; not in a hidden tab, and not while a request is pending.
setInterval(() => {
  const place = document.querySelector("[data-look]");
  if (!place || document.hidden || !window.htmx || place.classList.contains("htmx-request")) return;
  window.htmx.trigger(place, "look");
}, LOOK_MILLISECONDS);
