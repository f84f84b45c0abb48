// The shares as a bar that follows the numbers, and a word while a split is being made.
function lay(bar, shares) {
  const parts = bar.querySelectorAll(".share");
  shares.forEach((share, n) => { if (parts[n]) { parts[n].style.flexGrow = Math.max(share, 0); parts[n].hidden = share <= 0; } });
}

for (const bar of document.querySelectorAll(".shares")) {
  const made = [...bar.querySelectorAll("[data-share]")];
  if (made.length) lay(bar, made.map((part) => Number(part.dataset.share)));
}

const form = document.querySelector("form[data-busy]"), bar = form?.querySelector("[data-shares]");
if (bar) {
  const follow = () => {
    const [validation, heldOut] = ["validation", "held_out"].map((name) => Number(form.elements[name].value) || 0);
    const shares = [100 - validation - heldOut, validation, heldOut];
    lay(bar, shares);
    ["train", "validation", "held-out"].forEach((name, n) => { bar.children[n].textContent = `${Math.round(shares[n] * 10) / 10} %`; bar.children[n].title = name; });
    bar.hidden = false;
  };
  form.addEventListener("input", follow);
  follow();
}
form?.addEventListener("submit", () => {
  form.querySelector("[data-busy-words]").hidden = false;
  form.querySelector("button.primary").disabled = true;
});
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
