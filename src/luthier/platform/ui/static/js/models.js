// The pages on models: a slider beside each number that has one, and a look now and then at what is under way.
const LOOK_MILLISECONDS = 1500;

for (const slider of document.querySelectorAll("[data-slides]")) {
  const number = document.querySelector(slider.dataset.slides);
  slider.hidden = false;
  slider.addEventListener("input", () => { number.value = slider.value; });
  number.addEventListener("input", () => { slider.value = number.value; });
}

// The place is asked for anew as long as it says so; not in a hidden tab, and not while the answer before is awaited.
setInterval(() => {
  const place = document.querySelector("[data-look]");
  if (!place || document.hidden || !window.htmx || place.classList.contains("htmx-request")) return;
  window.htmx.trigger(place, "look");
}, LOOK_MILLISECONDS);
