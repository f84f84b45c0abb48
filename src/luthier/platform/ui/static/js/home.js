// What goes on is asked every few seconds, not while nobody looks; what has changed is said aloud, and looked at anew.
const told = document.querySelector("#told");

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
  if (told) told.textContent = now.querySelector("[data-words]")?.dataset.words ?? "";
  window.htmx?.trigger(document.querySelector("#rest"), "luthier:changed");
});
