// What is polled rests while nobody looks, and is asked at once when somebody looks again.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.target.id === "deliveries") event.preventDefault();
});
