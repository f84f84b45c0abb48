// The list of runs: rows of active runs are polled while the tab is visible; a comparison has two runs or more, up to a limit.
const EVERY_MS = 4000;

setInterval(() => {
  const rows = document.querySelector("#run-rows[data-moving]");
  if (rows && !document.hidden) rows.dispatchEvent(new CustomEvent("luthier:refresh"));
}, EVERY_MS);

const button = document.querySelector("#compare-button"), words = document.querySelector("#compare-words");
const asked = words?.textContent, most = Number(button?.dataset.most);

function count() {
  if (!button) return;
  const runs = [...document.querySelectorAll("#run-rows input[name=run]")], chosen = runs.filter((one) => one.checked).length;
  const all = document.querySelector("[data-choose-all]");
  if (all) {
    all.checked = chosen > 0 && chosen === runs.length;
    all.indeterminate = chosen > 0 && chosen < runs.length;
  }
  button.disabled = chosen < 2 || chosen > most;
  if (!chosen) words.textContent = asked;
  else words.textContent = chosen > most ? Luthier.t("{count} chosen: at most {most} can be compared", { count: chosen, most }) : Luthier.t("{count} chosen", { count: chosen });
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-choose-all]")) for (const one of document.querySelectorAll("#run-rows input[name=run]")) one.checked = event.target.checked;
  count();
});
document.addEventListener("htmx:afterSettle", count);
count();
