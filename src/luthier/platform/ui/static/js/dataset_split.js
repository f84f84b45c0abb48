// The shares as a bar that follows the numbers.
function lay(bar, shares) {
  const parts = bar.querySelectorAll(".side-part");
  shares.forEach((share, n) => { if (parts[n]) { parts[n].style.flexGrow = Math.max(share, 0); parts[n].hidden = share <= 0; } });
}

function layMade() {
  for (const bar of document.querySelectorAll(".side-bar:not([data-laid])")) {
    const made = [...bar.querySelectorAll("[data-share]")];
    if (!made.length) continue;
    bar.dataset.laid = "";
    lay(bar, made.map((part) => Number(part.dataset.share)));
  }
}
layMade();
// The proof comes by a script that looks again until it is there.
new MutationObserver(() => {
  layMade();
  if (!document.querySelector("[data-look-again]")) document.querySelector("form[data-split] button:disabled")?.removeAttribute("disabled");
}).observe(document.querySelector("#main"), { childList: true, subtree: true });

const percent = (share) => (share / 100).toLocaleString(document.documentElement.lang, { style: "percent", maximumFractionDigits: 1 });
const form = document.querySelector("form[data-split]"), bar = form?.querySelector("[data-shares]");
if (bar) {
  const follow = () => {
    const [validation, heldOut] = ["validation", "held_out"].map((name) => Number(form.elements[name].value) || 0);
    const shares = [100 - validation - heldOut, validation, heldOut];
    lay(bar, shares);
    const names = [Luthier.t("train"), Luthier.t("validation"), Luthier.t("held-out")];
    names.forEach((name, n) => { bar.children[n].textContent = percent(shares[n]); bar.children[n].title = name; });
    bar.hidden = false;
  };
  form.addEventListener("input", follow);
  follow();
}
