// Polls the list of running work every few seconds, but not in a hidden tab; announces a change to screen readers and
// refreshes the rest of the page.
const changes = document.querySelector("#changes");

document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.target.id === "now") event.preventDefault();
});
document.addEventListener("visibilitychange", () => {
  const now = document.querySelector("#now");
  if (!document.hidden && now) window.htmx?.trigger(now, "luthier:seen");
});

let atWork = document.querySelector("#now")?.dataset.atWork;
document.addEventListener("htmx:afterSettle", () => {
  const now = document.querySelector("#now");
  if (!now || now.dataset.atWork === atWork) return;
  atWork = now.dataset.atWork;
  if (changes) changes.textContent = now.querySelector("[data-words]")?.dataset.words ?? "";
  window.htmx?.trigger(document.querySelector("#rest"), "luthier:changed");
});
