// The legend of a plot with many lines: a switch for each, a search among their names, and all or only the found ones.
// What was hidden stays hidden where the chart is made again.
const hiddenOf = new Map(); // by key of the chart: the names of hidden lines

window.Luthier = window.Luthier ?? {};
window.Luthier.addChartLegend = (entry, draw) => {
  const { spec, figure } = entry, { t } = Luthier, names = spec.series.map((series) => series.name);
  const texts = spec.series.map((series) => series.shown || series.name); // in the language of the page
  if (!hiddenOf.has(spec.key)) hiddenOf.set(spec.key, new Set());
  entry.hidden = hiddenOf.get(spec.key);
  const box = document.createElement("div"), search = document.createElement("input"), list = document.createElement("ul");
  const count = document.createElement("span"), boxes = new Map();
  box.className = "line-legend";
  Object.assign(search, { type: "search", placeholder: t("Find a line"), maxLength: 60, autocomplete: "off" });
  search.setAttribute("aria-label", t("Find a line of {title}", { title: spec.title }));
  count.className = "small";
  count.setAttribute("role", "status");
  const show = () => {
    for (const [name, check] of boxes) check.checked = !entry.hidden.has(name);
    count.textContent = t("{shown} of {count} lines", { shown: names.length - entry.hidden.size, count: names.length });
  };
  const change = (act) => { act(); show(); draw(); };
  const isFound = (text) => text.toLocaleLowerCase().includes(search.value.trim().toLocaleLowerCase());
  const button = (words, act) => {
    const one = Object.assign(document.createElement("button"), { type: "button", textContent: words });
    one.addEventListener("click", act);
    return one;
  };
  for (const [place, series] of spec.series.entries()) {
    const item = document.createElement("li"), label = document.createElement("label"), check = document.createElement("input");
    check.type = "checkbox";
    check.addEventListener("change", () => {
      change(() => { if (check.checked) entry.hidden.delete(series.name); else entry.hidden.add(series.name); });
    });
    item.className = series.is_dashed ? `${series.role} dashed` : series.role;
    label.append(check, texts[place]);
    item.append(label);
    list.append(item);
    boxes.set(series.name, check);
  }
  search.addEventListener("input", () => {
    [...list.children].forEach((item, place) => { item.hidden = !isFound(texts[place]); });
  });
  const only = button(t("Only these"), () => change(() => {
    entry.hidden.clear();
    for (const [place, name] of names.entries()) if (!isFound(texts[place])) entry.hidden.add(name);
  }));
  const all = button(t("All lines"), () => change(() => entry.hidden.clear()));
  const head = document.createElement("div");
  head.className = "row";
  head.append(search, only, all, count);
  list.className = "legend";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", t("Lines of {title}", { title: spec.title }));
  box.append(head, list);
  figure.querySelector("h3").after(box);
  show();
};
