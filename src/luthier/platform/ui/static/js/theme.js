// Runs before the first paint: sets the chosen theme and marks that scripts run.
document.documentElement.classList.add("js");
try {
  const chosen = localStorage.getItem("luthier-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage may be forbidden: the system's theme it is */ }
