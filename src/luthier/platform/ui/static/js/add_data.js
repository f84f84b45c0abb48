// Add data: files, folders and what is dropped, with progress, remaining time and a cancel button.

const { t } = window.Luthier, language = document.documentElement.lang;
const counted = (number) => number.toLocaleString(language);

function size(bytes) {
  for (const [unit, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (bytes >= unit) return `${(bytes / unit).toLocaleString(language, { maximumSignificantDigits: 3 })} ${name}`;
  }
  return `${bytes} B`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

// All files below a dropped entry, each with its path. A browser gives the entries of a folder in portions.
async function filesBelow(entry, path = "") {
  if (entry.isFile) return [{ file: await new Promise((found, failed) => entry.file(found, failed)), path: path + entry.name }];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const some = await new Promise((read, failed) => reader.readEntries(read, failed));
    if (!some.length) return found;
    for (const inner of some) found.push(...await filesBelow(inner, `${path}${entry.name}/`));
  }
}

class Upload {
  constructor(form) {
    this.form = form;
    const find = (name) => form.querySelector(name);
    this.file = find("#file"); this.folder = find("#folder"); this.name = find("#name"); this.dataset = find("#dataset"); this.drop = find("[data-drop]");
    this.progress = find("[data-progress]"); this.bar = find("progress"); this.words = find("[data-progress-words]");
    this.said = find("[data-progress-said]"); this.cancel = find("[data-cancel]"); this.button = find("button.primary");
    this.list = find("[data-chosen]"); this.clear = find("[data-clear]"); this.errors = document.getElementById("upload-error");
    this.dropped = [];
    this.listen();
  }

  listen() {
    const { form, drop } = this;
    this.dataset.addEventListener("change", () => this.showName());
    this.showName();
    for (const field of [this.file, this.folder]) field.addEventListener("change", () => this.chosen());
    for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
    document.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); this.take(event.dataTransfer); });
    form.addEventListener("submit", (event) => { event.preventDefault(); if (!this.request && this.isFine()) this.send(); });
    this.cancel.addEventListener("click", () => this.request?.abort());
    this.clear.addEventListener("click", () => { this.dropped = []; this.file.value = this.folder.value = ""; this.errors.replaceChildren(); this.chosen(); this.file.focus(); });
    addEventListener("beforeunload", (event) => { if (this.request) event.preventDefault(); });
  }

  async take(transfer) {
    if (this.request) return;
    // Entries have to be asked for before the first wait: the browser forgets them after it.
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.length && !transfer.files.length) return;
    if (entries.some((entry) => entry.isDirectory)) {
      try {
        const found = (await Promise.all(entries.map((entry) => filesBelow(entry)))).flat();
        this.dropped.push(...found);
      } catch { this.tell(t("a dropped folder could not be read"), t("a folder that this browser may read"), t("choose it with “Or a folder”")); return; }
    } else {
      this.dropped.push(...[...transfer.files].map((file) => ({ file, path: file.name })));
    }
    this.chosen();
  }

  get all() {
    const chosen = [...this.file.files, ...this.folder.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
    return [...chosen, ...this.dropped].filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
  }

  showName() {
    const isNew = this.dataset.value === "";
    this.name.closest("[data-name]").hidden = !isNew;
  }

  chosen() {
    const found = this.all;
    this.list.replaceChildren();
    this.clear.hidden = !found.length;
    for (const { file, path } of found.slice(0, 8)) {
      const line = document.createElement("li");
      line.textContent = `${path} · ${size(file.size)}`;
      this.list.append(line);
    }
    if (found.length > 8) {
      const line = document.createElement("li");
      line.textContent = t("and {count} more · {size} in all", { count: found.length - 8, size: size(found.reduce((sum, one) => sum + one.file.size, 0)) });
      this.list.append(line);
    }
    if (found.length && this.isFine() && !this.name.value) {
      const [top, ...rest] = found[0].path.split("/");
      this.name.value = (rest.length ? top : top.replace(/(\.\w+)(\.gz)?$/i, "")).slice(0, 100);
    }
  }

  isFine() {
    this.errors.replaceChildren();
    const found = this.all;
    if (!found.length) return this.tell(t("no file was chosen"), t("at least one file"), t("choose files, or drop them on the page"));
    // not form.dataset: a field of the form has that name
    const given = (name) => this.form.getAttribute(name), suffixes = given("data-suffixes").split(" "), names = given("data-names").split(" ");
    const most = Number(given("data-max-bytes")), mostFiles = Number(given("data-max-files"));
    const isRead = ({ path }) => {
      const name = path.toLowerCase().split("/").at(-1);
      return names.includes(name) || suffixes.some((suffix) => name.replace(/\.gz$/, "").endsWith(suffix));
    };
    if (!found.some(isRead)) {
      const first = found.length > 1 ? t("{path} and {count} more", { path: found[0].path, count: found.length - 1 }) : found[0].path;
      return this.tell(t("{path}: not a supported kind of file", { path: first }), t("a file that ends in {suffixes}", { suffixes: suffixes.join(", ") }), t("save it as one of these kinds, for example as PDF or CSV"));
    }
    if (found.length === 1 && found[0].file.size === 0) return this.tell(t("{path} is empty", { path: found[0].path }), t("a file with content"), t("check how it was written"));
    if (found.length > mostFiles) return this.tell(t("{count} files", { count: counted(found.length) }), t("at most {count} at once", { count: counted(mostFiles) }), t("put them into one ZIP file, or add them in parts"));
    const total = found.reduce((sum, one) => sum + one.file.size, 0);
    if (total > most) return this.tell(`${found.length === 1 ? found[0].path : t("the files")}: ${size(total)}`, t("at most {count} at once", { count: size(most) }), t("add fewer files, or ask the operator to raise LUTHIER_MAX_FILE_BYTES"));
    const isTaken = [...this.dataset.options].some((option) => option.value && option.dataset.of === this.name.value.trim());
    if (this.dataset.value === "" && this.name.value.trim() && isTaken) return this.tell(t("a dataset {name} exists already", { name: this.name.value.trim() }), t("a name that is free"), t("choose another name, or add the files as a new version of that one"));
    return true;
  }

  send() {
    const found = this.all, data = new FormData();
    for (const name of ["dataset", "name", "note", "passage_tokens", "assistants"]) data.append(name, this.form.elements[name].value);
    for (const { file, path } of found) data.append("file", file, path); // last, so that the rest is known when they come
    const request = this.request = new XMLHttpRequest();
    const start = performance.now();
    let heard = 0;
    this.show(true);
    this.said.textContent = t("{what}: sending", { what: found.length === 1 ? found[0].path : t("{count} files", { count: counted(found.length) }) });
    request.upload.addEventListener("progress", (event) => {
      const seconds = (performance.now() - start) / 1000, share = event.loaded / event.total, rate = event.loaded / seconds;
      this.bar.value = share;
      const left = seconds > 1 && share < 1 ? ` · ${t("about {time} left", { time: duration((event.total - event.loaded) / rate) })}` : "";
      this.words.textContent = `${t("{part} of {whole}", { part: size(event.loaded), whole: size(event.total) })} · ${size(Math.round(rate))}/s${left}`;
      const quarter = Math.floor(share * 4);
      if (quarter > heard && quarter < 4) { heard = quarter; this.said.textContent = t("{percent} percent sent", { percent: quarter * 25 }); }
    });
    request.upload.addEventListener("load", () => {
      this.bar.removeAttribute("value");
      this.words.textContent = this.said.textContent = t("Everything is sent and is being checked.");
    });
    request.addEventListener("load", () => this.ended(request));
    request.addEventListener("error", () => this.failed(t("the connection was interrupted"), t("a complete upload"), t("check that the server is running and that you are still signed in, then send it again; nothing was kept")));
    request.addEventListener("abort", () => this.failed(t("it was cancelled"), "", ""));
    request.open("POST", this.form.action);
    request.setRequestHeader("Accept", "application/json");
    request.setRequestHeader("HX-Current-URL", location.href);
    request.send(data);
  }

  ended(request) {
    this.request = null;
    const away = request.getResponseHeader("HX-Redirect");
    if (away) { location.href = away; return; }
    let answer = null;
    try { answer = JSON.parse(request.responseText); } catch { /* an HTML page, from middleware before the handler */ }
    if (request.status === 201 && answer?.address) { location.href = answer.address; return; }
    this.failed(answer?.came ?? t("the server answered {status}", { status: request.status }), answer?.expected ?? t("a file that is accepted"), answer?.do ?? t("see the server's log"));
  }

  failed(came, expected, what) {
    this.request = null;
    this.show(false);
    if (expected) { this.tell(came, expected, what); return; }
    this.said.textContent = t("It was cancelled. Nothing was kept.");
    this.words.textContent = this.said.textContent;
    this.progress.hidden = false;
  }

  show(isSending) {
    this.progress.hidden = !isSending;
    this.cancel.hidden = !isSending;
    this.button.disabled = isSending;
    this.bar.hidden = !isSending;
    this.bar.value = 0;
    this.words.textContent = "";
    for (const field of [this.clear, this.file, this.folder, this.name, this.dataset, this.form.elements.note, this.form.elements.passage_tokens, this.form.elements.assistants]) field.disabled = isSending;
  }

  tell(came, expected, what) {
    const box = document.createElement("div");
    box.className = "message bad";
    const strong = document.createElement("strong"), list = document.createElement("dl");
    strong.textContent = came;
    for (const [name, words] of [[t("expected"), expected], [t("what to do"), what]]) {
      const term = document.createElement("dt"), said = document.createElement("dd");
      term.textContent = name;
      said.textContent = words;
      list.append(term, said);
    }
    box.append(strong, list);
    this.errors.replaceChildren(box);
    this.errors.scrollIntoView({ block: "nearest" });
    return false;
  }
}

for (const form of document.querySelectorAll("form[data-upload]")) new Upload(form);
