// Buttons below a plot: zoom in and out, back to all of it, and the plot as a picture (PNG) or a table (CSV).
function save(address, name) {
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

const fileName = (entry, ending) => `${[location.pathname.split("/").pop(), entry.spec.key].filter(Boolean).join("-")}.${ending}`;

const OF_STEPS = ["run", "compare"]; // groups of plots over steps: a file says so in English, as the server's do

// A row for each x, a column for each series, as they are drawn: of very long series a part of the points.
function table(spec, more) {
  // A name that begins like a formula of a spreadsheet gets an apostrophe in front, as in CSV files of the server.
  const shown = (value) => (typeof value === "string" && /^'*[=+\-@\t\r]/.test(value) ? `'${value}` : String(value));
  const cell = (value) => (value === undefined ? "" : /[",\r\n]/.test(shown(value)) ? `"${shown(value).replaceAll('"', '""')}"` : shown(value));
  const columns = spec.series.map((series) => new Map(series.points));
  const places = [...new Set(spec.series.flatMap((series) => series.points.map(([x]) => x)))].sort((a, b) => a - b);
  const rows = places.map((x) => [x, ...more.map(([, of]) => of(x)), ...columns.map((column) => column.get(x))]);
  const names = [OF_STEPS.includes(spec.group) ? "step" : spec.x.name || "x", ...more.map(([name]) => name), ...spec.series.map((series) => series.name || spec.title)];
  return [names, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function savePicture(entry) {
  save(entry.chart.getDataURL({ type: "png", pixelRatio: 2, backgroundColor: entry.colour("card") }), fileName(entry, "png"));
}

function saveTable(entry) {
  const address = URL.createObjectURL(new Blob([table(entry.spec, entry.columnsOfStep())], { type: "text/csv" }));
  save(address, fileName(entry, "csv"));
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// Zooms around the middle of what is seen; `factor` below 1 shows less of it.
function zoomBy(entry, factor) {
  const { start = 0, end = 100 } = entry.zoom ?? {}, middle = (start + end) / 2;
  const half = Math.min(50, Math.max(0.5, ((end - start) / 2) * factor));
  const from = Math.max(0, Math.min(100 - 2 * half, middle - half));
  entry.chart.dispatchAction({ type: "dataZoom", start: from, end: from + 2 * half });
}

window.Luthier = window.Luthier ?? {};
window.Luthier.addChartActions = (entry, helpers) => {
  Object.assign(entry, helpers);
  const bar = document.createElement("div"), { title } = entry.spec, buttons = {};
  bar.className = "chart-actions";
  const add = (name, words, label, act) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: words });
    button.setAttribute("aria-label", `${label} ${title}`);
    button.addEventListener("click", act);
    buttons[name] = button;
    bar.append(button);
  };
  add("in", Luthier.t("Zoom in"), `${Luthier.t("Zoom in")}:`, () => zoomBy(entry, 0.5));
  add("out", Luthier.t("Zoom out"), `${Luthier.t("Zoom out")}:`, () => zoomBy(entry, 2));
  add("reset", Luthier.t("Reset zoom"), `${Luthier.t("Reset zoom")}:`, () => entry.chart.dispatchAction({ type: "dataZoom", start: 0, end: 100 }));
  add("png", "PNG", Luthier.t("PNG of"), () => savePicture(entry));
  add("csv", "CSV", Luthier.t("CSV of"), () => saveTable(entry));
  const show = () => {
    const isWhole = !entry.zoom || (entry.zoom.start <= 0 && entry.zoom.end >= 100);
    buttons.reset.hidden = buttons.out.hidden = isWhole;
  };
  entry.chart.on("datazoom", () => {
    const [{ start, end }] = entry.chart.getOption().dataZoom;
    entry.zoom = { start, end };
    show();
  });
  show();
  entry.figure.append(bar);
};
