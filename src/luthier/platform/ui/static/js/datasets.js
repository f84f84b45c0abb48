// Datasets: poll for answers that are still being computed.

for (const choice of document.querySelectorAll("[data-send-on-change]")) {
  choice.addEventListener("change", () => choice.form.requestSubmit());
}

// While an answer is being computed, the page is fetched again and `#answer` and `#what` replace what is here. Most
// answers take a moment, so that the first looks follow each other soon, and later ones every second.
const LONGEST_MS = 1000;
let pauseMs = 150;
function lookAgain() {
  const note = document.querySelector("[data-look-again]");
  if (!note) return;
  setTimeout(async () => {
    if (document.hidden) { document.addEventListener("visibilitychange", lookAgain, { once: true }); return; }
    try {
      const answer = await Luthier.ask(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected || !answer.ok) { location.reload(); return; }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (page.querySelector("[data-look-again]")) {
        for (const part of document.querySelectorAll("[data-live]")) { // how far the work is
          const now = page.getElementById(part.id);
          if (now) part.replaceWith(document.adoptNode(now));
        }
        lookAgain();
        return;
      }
      const places = [...document.querySelectorAll("[data-look-again]")].map((one) => one.closest("#answer, #what"));
      if (places.some((place) => !place || !page.getElementById(place.id))) { location.reload(); return; }
      for (const place of new Set(places)) place.replaceWith(document.adoptNode(page.getElementById(place.id)));
      // What was found decides the next step.
      const steps = page.getElementById("steps");
      if (steps) document.getElementById("steps")?.replaceWith(document.adoptNode(steps));
      document.querySelector("aside form button[disabled]")?.removeAttribute("disabled");
      window.Luthier?.charts?.startAll(document);
      document.getElementById("said").textContent = Luthier.t("Done.");
    } catch { lookAgain(); /* the server may be restarting */ }
  }, pauseMs);
  pauseMs = Math.min(1.5 * pauseMs, LONGEST_MS);
}
lookAgain();
