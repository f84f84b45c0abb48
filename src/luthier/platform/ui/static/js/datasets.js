// Datasets: upload a file with progress, remaining time and a cancel button; poll for answers that are still being computed.

for (const choice of document.querySelectorAll("[data-send-on-change]")) {
  choice.addEventListener("change", () => choice.form.requestSubmit());
}

// While an answer is being computed, the page is fetched again and `#answer` and `#what` replace what is here.
function lookAgain() {
  const note = document.querySelector("[data-look-again]");
  if (!note) return;
  setTimeout(async () => {
    if (document.hidden) { document.addEventListener("visibilitychange", lookAgain, { once: true }); return; }
    try {
      const answer = await Luthier.ask(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected || !answer.ok) { location.reload(); return; }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (page.querySelector("[data-look-again]")) { lookAgain(); return; }
      const places = [...document.querySelectorAll("[data-look-again]")].map((one) => one.closest("#answer, #what"));
      if (places.some((place) => !place || !page.getElementById(place.id))) { location.reload(); return; }
      for (const place of new Set(places)) place.replaceWith(document.adoptNode(page.getElementById(place.id)));
      document.querySelector("aside form button[disabled]")?.removeAttribute("disabled");
      window.Luthier?.charts?.startAll(document);
      document.getElementById("said").textContent = "It is done.";
    } catch { lookAgain(); /* the server may be restarting */ }
  }, 1000);
}
lookAgain();

function size(bytes) {
  for (const [unit, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (bytes >= unit) return `${(bytes / unit).toLocaleString("en", { maximumSignificantDigits: 3 })} ${name}`;
  }
  return `${bytes} B`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

class Upload {
  constructor(form) {
    this.form = form;
    const find = (name) => form.querySelector(name);
    this.file = find("#file"); this.name = find("#name"); this.dataset = find("#dataset"); this.drop = find("[data-drop]");
    this.progress = find("[data-progress]"); this.bar = find("progress"); this.words = find("[data-progress-words]");
    this.said = find("[data-progress-said]"); this.cancel = find("[data-cancel]"); this.button = find("button.primary");
    this.errors = document.getElementById("upload-error");
    this.listen();
  }

  listen() {
    const { form, file, drop } = this;
    this.dataset.addEventListener("change", () => this.showName());
    this.showName();
    file.addEventListener("change", () => this.chosen());
    for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (this.request || !event.dataTransfer.files.length) return;
      if (event.dataTransfer.files.length > 1) { this.tell("more than one file was dropped", "one file of rows", "drop one; put several together first"); return; }
      file.files = event.dataTransfer.files;
      this.chosen();
    });
    form.addEventListener("submit", (event) => { event.preventDefault(); if (!this.request && this.isFine()) this.send(); });
    this.cancel.addEventListener("click", () => this.request?.abort());
    addEventListener("beforeunload", (event) => { if (this.request) event.preventDefault(); });
  }

  showName() {
    const isNew = this.dataset.value === "";
    this.name.closest("[data-name]").hidden = !isNew;
    this.name.required = isNew;
  }

  chosen() {
    const file = this.file.files[0];
    if (file && this.isFine() && !this.name.value) this.name.value = file.name.replace(/(\.\w+)(\.gz)?$/i, "").slice(0, 100);
  }

  isFine() {
    this.errors.replaceChildren();
    const file = this.file.files[0];
    if (!file) return true; // the browser says so itself
    // not form.dataset: a field of the form has that name
    const suffixes = this.form.getAttribute("data-suffixes").split(" "), most = Number(this.form.getAttribute("data-max-bytes"));
    const plain = file.name.toLowerCase().replace(/\.gz$/, "");
    if (!suffixes.some((suffix) => plain.endsWith(suffix))) {
      return this.tell(`${file.name} does not end as a file of rows does`, `a file that ends in ${suffixes.join(", ")}, each also with .gz`, "export the rows as JSONL or CSV; of documents make rows first: luthier data ingest");
    }
    if (file.size === 0) return this.tell(`${file.name} is empty`, "at least one row", "check how it was written");
    if (file.size > most) return this.tell(`${file.name} has ${size(file.size)}`, `at most ${size(most)}`, "send a smaller one, or ask who runs this server to raise LUTHIER_MAX_FILE_BYTES");
    const isTaken = [...this.dataset.options].some((option) => option.value && option.text === `a new version of ${this.name.value.trim()}`);
    if (this.dataset.value === "" && isTaken) return this.tell(`a dataset ${this.name.value.trim()} exists already`, "a name that is free", "choose another name, or bring the file as a new version of that one");
    return true;
  }

  send() {
    const file = this.file.files[0], data = new FormData();
    for (const name of ["dataset", "name", "note"]) data.append(name, this.form.elements[name].value);
    data.append("file", file); // last, so that the rest is known when it comes
    const request = this.request = new XMLHttpRequest();
    const start = performance.now();
    let heard = 0;
    this.show(true);
    this.said.textContent = `${file.name} is on its way`;
    request.upload.addEventListener("progress", (event) => {
      const seconds = (performance.now() - start) / 1000, share = event.loaded / event.total, rate = event.loaded / seconds;
      this.bar.value = share;
      const left = seconds > 1 && share < 1 ? ` · about ${duration((event.total - event.loaded) / rate)} left` : "";
      this.words.textContent = `${size(event.loaded)} of ${size(event.total)} · ${size(Math.round(rate))}/s${left}`;
      const quarter = Math.floor(share * 4);
      if (quarter > heard && quarter < 4) { heard = quarter; this.said.textContent = `${quarter * 25} percent are sent`; }
    });
    request.upload.addEventListener("load", () => {
      this.bar.removeAttribute("value");
      this.words.textContent = this.said.textContent = "All is sent. The rows are looked at.";
    });
    request.addEventListener("load", () => this.ended(request));
    request.addEventListener("error", () => this.failed("the connection broke off", "a file that arrives whole", "see whether the server runs and you are still signed in, then send it again; nothing of it was kept"));
    request.addEventListener("abort", () => this.failed("it was cancelled", "", ""));
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
    this.failed(answer?.came ?? `the server answered ${request.status}`, answer?.expected ?? "a file that is accepted", answer?.do ?? "see the server's log");
  }

  failed(came, expected, what) {
    this.request = null;
    this.show(false);
    if (expected) { this.tell(came, expected, what); return; }
    this.said.textContent = "It was cancelled. Nothing was kept.";
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
    for (const field of [this.file, this.name, this.dataset, this.form.elements.note]) field.disabled = isSending;
  }

  tell(came, expected, what) {
    const box = document.createElement("div");
    box.className = "message bad";
    const strong = document.createElement("strong"), list = document.createElement("dl");
    strong.textContent = came;
    for (const [name, words] of [["expected", expected], ["what to do", what]]) {
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
