// The list of runs: what moves is asked for anew while somebody looks; two runs or more must be chosen to be compared.
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
