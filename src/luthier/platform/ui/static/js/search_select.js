// `<select data-search>` with many choices gets a field that searches them while one types: choices that do not have all
// words are taken out of the list, and the first that is left is chosen. Without this script it is a plain select.
const FEWEST = 8;

function words(text) {
  return text.toLowerCase().split(/\s+/).filter(Boolean);
}

function enhance(select) {
  if (select.options.length <= FEWEST || select.dataset.searched !== undefined) return;
  select.dataset.searched = "";
  const all = [...select.options].map((option) => ({ option, text: `${option.textContent} ${option.value}`.toLowerCase(), group: option.parentElement }));
  const field = document.createElement("input"), status = document.createElement("span"), name = select.labels?.[0]?.firstChild?.textContent?.trim() || select.name;
  Object.assign(field, { type: "search", className: "search-select", autocomplete: "off", placeholder: Luthier.t("Search {count} choices", { count: all.length }) });
  field.setAttribute("aria-label", Luthier.t("Search: {name}", { name }));
  status.className = "visually-hidden";
  status.setAttribute("role", "status");
  let before = select.value;
  select.before(field, status);
  // A label around both is that of the field now: the select keeps its name by itself.
  if (![...(select.labels ?? [])].some((label) => label.control === select)) select.setAttribute("aria-label", name);

  // What is typed is no input of the form: the choice is, once it is made. A form that plans at each input waits for it.
  const choose = () => { for (const type of ["input", "change"]) select.dispatchEvent(new Event(type, { bubbles: true })); };
  field.addEventListener("input", (event) => {
    event.stopPropagation();
    const wanted = words(field.value), chosen = new Set([...select.selectedOptions]);
    const found = all.filter((one) => wanted.every((word) => one.text.includes(word)) || (select.multiple && chosen.has(one.option)));
    for (const { option } of all) option.remove();
    for (const { option, group } of found) group.append(option);
    for (const option of chosen) if (option.isConnected) option.selected = true;
    if (!select.multiple && found.length && ![...chosen].some((option) => option.isConnected)) select.selectedIndex = 0;
    status.textContent = Luthier.t("{count} of {total} choices", { count: found.length, total: all.length });
  });
  // Enter takes the choice that is shown, and does not send the form.
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); select.focus(); }
    else if (event.key === "Escape" && field.value) { event.preventDefault(); field.value = ""; field.dispatchEvent(new Event("input")); }
  });
  field.addEventListener("change", (event) => { event.stopPropagation(); if (!select.multiple && select.value !== before) choose(); before = select.value; });
  select.addEventListener("change", () => { before = select.value; });
}

function enhanceAll(within) {
  for (const select of within.querySelectorAll("select[data-search]")) enhance(select);
}

enhanceAll(document);
document.addEventListener("htmx:afterSettle", () => enhanceAll(document));
