// Polling pauses in a hidden tab, and resumes at once when the tab is visible again.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.target.id === "deliveries") event.preventDefault();
});
