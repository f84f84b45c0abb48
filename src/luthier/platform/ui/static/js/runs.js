// The list of runs: rows of active runs are polled while the tab is visible; a comparison needs two runs or more.
const EVERY_MS = 4000;

setInterval(() => {
  const rows = document.querySelector("#run-rows[data-moving]");
  if (rows && !document.hidden) rows.dispatchEvent(new CustomEvent("luthier:refresh"));
}, EVERY_MS);

const button = document.querySelector("#compare-button"), words = document.querySelector("#compare-words");
const asked = words?.textContent;

function count() {
  if (!button) return;
  const chosen = document.querySelectorAll("#run-rows input[name=run]:checked").length;
  button.disabled = chosen < 2;
  words.textContent = chosen ? `${chosen} chosen` : asked;
}

document.addEventListener("change", count);
document.addEventListener("htmx:afterSettle", count);
count();
