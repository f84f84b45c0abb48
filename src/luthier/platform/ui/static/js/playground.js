// The playground where scripts run: answers are shown as they are written. What a model writes is only ever made text.
const form = document.querySelector("form#chat");
const message = form?.elements.namedItem("message");
const status = form?.querySelector("[data-status]");
const sides = [];
const { isReturn } = window.Luthier;

function clone(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

// Control and direction characters that a browser would hide are shown by their code, as on pages from the server.
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff]/g, (sign) => {
    const code = sign.charCodeAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

// A text in pieces, those between code fences as <pre>, as the server shows it.
function showText(words, text) {
  words.replaceChildren();
  const add = (kind, piece) => {
    if (!piece) return;
    const made = document.createElement(kind);
    made.textContent = visible(piece);
    words.append(made);
  };
  let at = 0;
  for (const found of text.matchAll(/^```[^\n]*\n([\s\S]*?)(?:^```[ \t]*$\n?|(?![\s\S]))/gm)) {
    add("p", text.slice(at, found.index).replace(/^\n+|\n+$/g, ""));
    add("pre", found[1].replace(/\n+$/, ""));
    at = found.index + found[0].length;
  }
  add("p", text.slice(at).replace(/^\n+|\n+$/g, ""));
  if (!words.childElementCount) { add("p", Luthier.t("(empty)")); words.firstElementChild.className = "muted"; }
}

function showError(bubble, error) {
  const box = document.createElement("div"), list = document.createElement("dl"), came = document.createElement("strong");
  box.className = "message bad";
  box.setAttribute("role", "alert");
  came.textContent = visible(error.came);
  for (const [name, words] of [[Luthier.t("expected"), error.expected], [Luthier.t("what to do"), error.do]]) {
    if (!words) continue;
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = visible(words);
    list.append(term, text);
  }
  box.append(came, list);
  bubble.replaceChildren(box);
  bubble.classList.remove("waiting");
}

class Side {
  constructor(section) {
    this.section = section;
    this.number = Number(section.dataset.side);
    this.list = section.querySelector(".exchange");
    this.input = section.querySelector('input[name="talk"]');
    this.choice = form.querySelector(`[data-model="${this.number}"]`);
    this.turns = JSON.parse(this.input.value);
    this.choice.addEventListener("change", () => {
      this.showModel();
      history.replaceState(null, "", document.querySelector("[data-new]").href); // a reload has these models again
      for (const side of sides) side.keep();
    });
    this.showModel();
    if (!this.turns.length && isReturn) this.restore();
  }

  // The conversation of this tab, after a reload or a step back.
  restore() {
    let turns = [];
    try { turns = JSON.parse(sessionStorage.getItem(this.key) ?? "[]"); } catch { /* storage may be forbidden */ }
    for (const turn of turns) {
      if (turn.role === "user") { this.say(turn.content); continue; }
      const bubble = clone("answer-turn");
      this.list.append(bubble);
      this.finish(bubble, { text: turn.content, thought: turn.thought ?? "" }, turn.facts ?? "", turn.exchange_id ?? "");
      this.turns.at(-1).thumb = turn.thumb;
      for (const one of bubble.querySelectorAll(".thumbs button")) one.setAttribute("aria-pressed", String(one.value.startsWith(`${turn.thumb}:`)));
      const thought = bubble.querySelector(".thought");
      thought.hidden = !turn.thought;
      thought.querySelector(".thinking").textContent = visible(turn.thought ?? "");
    }
    this.keep();
  }

  get key() { return `luthier-talk:${location.search}:${this.number}`; }
  get isAsked() { return this.choice.value !== ""; }
  get isBusy() { return this.controller !== undefined; }

  showModel() {
    this.section.querySelector("h2").textContent = this.choice.selectedOptions[0]?.dataset.shown || this.choice.value || Luthier.t("No model");
    this.section.hidden = !this.isAsked && this.number > 1;
    const chosen = [...form.querySelectorAll("[data-model]")].map((one) => one.value).filter(Boolean);
    document.querySelector("[data-new]").href = `/playground?${chosen.map((name) => `model=${encodeURIComponent(name)}`).join("&")}`;
  }

  keep() {
    this.input.value = JSON.stringify(this.turns);
    try { sessionStorage.setItem(this.key, this.input.value); } catch { /* too long, or forbidden: for this page only, then */ }
  }

  forget() { try { sessionStorage.removeItem(this.key); } catch { /* nothing was kept, then */ } }

  say(text) {
    if (this.turns.at(-1)?.role === "user") this.takeBack();
    const bubble = clone("user-turn");
    bubble.querySelector(".words").textContent = visible(text);
    this.list.append(bubble);
    this.turns.push({ role: "user", content: text });
    this.keep();
  }

  // Takes back the last question, and the error shown in place of its answer.
  takeBack() {
    this.turns.pop();
    while (this.list.lastElementChild && !this.list.lastElementChild.classList.contains("user")) this.list.lastElementChild.remove();
    this.list.lastElementChild?.remove();
  }

  takeAnswerBack() {
    if (this.turns.at(-1)?.role === "assistant") this.turns.pop();
    while (this.list.lastElementChild && !this.list.lastElementChild.classList.contains("user")) this.list.lastElementChild.remove();
    this.keep();
    return this.turns.length > 0;
  }

  async answer() {
    const bubble = clone("answer-turn");
    bubble.classList.add("waiting");
    this.list.append(bubble);
    const words = bubble.querySelector(".words"), written = { text: "", thought: "", node: document.createTextNode("") };
    const thought = bubble.querySelector(".thought"), thinking = thought.querySelector(".thinking");
    this.controller = new AbortController();
    this.state = "waiting";
    let facts = "", exchange = "", error = null;
    try {
      ({ facts, exchange } = await this.read(written, () => { if (!written.node.isConnected) words.append(written.node); }, (more) => {
        thought.hidden = false;
        written.thought += more;
        thinking.append(visible(more));
      }));
    } catch (wrong) {
      if (wrong.name === "AbortError") facts = Luthier.t("stopped by you");
      else error = wrong.shown ?? { came: Luthier.t("the connection to the server was interrupted"), do: Luthier.t("try again") };
    }
    this.controller = undefined;
    if (error) { this.fail(bubble, error, written.text); return; }
    if (facts === Luthier.t("stopped by you") && !written.text) { bubble.remove(); return; }
    this.finish(bubble, written, facts, exchange);
  }

  // Reads lines of JSON until the end; returns the facts about the answer (tokens, seconds).
  async read(written, begin, think) {
    const body = new URLSearchParams(new FormData(form));
    for (const name of [...new Set(body.keys())]) if (name === "model" || name === "talk" || name === "message" || name.startsWith("reference-")) body.delete(name);
    body.delete("form_token"); // the same question may be put twice
    body.set("model", this.choice.value);
    body.set("talk", JSON.stringify(this.turns));
    const response = await Luthier.ask(form.dataset.answers, { method: "POST", body, headers: { Accept: "application/json" }, signal: this.controller.signal });
    if (!response.ok) throw await refusal(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) throw { shown: { came: Luthier.t("the answer broke off"), do: Luthier.t("try again") } };
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const said = JSON.parse(line);
        if (said.kind === "text") {
          this.state = "writing";
          begin();
          written.text += said.text;
          written.node.appendData(visible(said.text));
        } else if (said.kind === "thought") {
          this.state = "writing";
          think(said.text);
        } else if (said.kind === "started") this.state = "reading";
        else if (said.kind === "ended") return said;
        else if (said.kind === "failed") throw { shown: said.error };
      }
      followEnd();
    }
  }

  fail(bubble, error, text) {
    showError(bubble, error);
    if (text) {
      const kept = document.createElement("p");
      kept.className = "words";
      kept.textContent = visible(text);
      bubble.prepend(kept);
    }
    this.keep();
  }

  finish(bubble, { text, thought }, facts, exchange) {
    bubble.classList.remove("waiting");
    showText(bubble.querySelector(".words"), text);
    bubble.querySelector(".facts-line").textContent = facts;
    const place = this.turns.push({ role: "assistant", content: text, facts, exchange_id: exchange, thought }) - 1;
    const reference = bubble.querySelector("textarea"), save = bubble.querySelector('[name="save"]');
    if (reference) { reference.name = `reference-${this.number}-${place}`; reference.value = text; }
    if (save) save.value = `${this.number}:${place}`;
    for (const button of bubble.querySelectorAll('[name="said"]')) {
      if (exchange) button.value = `${button.value.split(":")[0]}:${this.number}:${place}`;
      else button.remove(); // what was stopped has no name that anybody knows it by
    }
    this.keep();
  }
}

async function refusal(response) {
  if (response.status === 401) { location.href = response.headers.get("HX-Redirect") ?? "/sign-in"; }
  try {
    return { shown: (await response.json()).error };
  } catch {
    return { shown: { came: Luthier.t("the server answered {status}", { status: response.status }), do: Luthier.t("reload the page and try again") } };
  }
}

// The page follows what is written where its end was in sight.
function followEnd() {
  const root = document.documentElement;
  if (root.scrollHeight - root.scrollTop - root.clientHeight < 160) root.scrollTop = root.scrollHeight;
}

function active() { return sides.filter((side) => side.isAsked); }

async function answerAll(asked) {
  const began = Date.now(), send = form.querySelector('[value="send"]'), stop = form.querySelector("[data-stop]");
  const tell = () => {
    const seconds = Math.round((Date.now() - began) / 1000), waiting = asked.some((side) => side.isBusy && side.state === "waiting");
    const words = !waiting || seconds < 2 ? "" : Luthier.t("Waiting: a model that was idle for a while is loaded first, which takes a few seconds.");
    if (status.textContent !== words) status.textContent = words;
  };
  const timer = setInterval(tell, 500);
  for (const button of form.querySelectorAll('[name="do"], [data-again]')) button.disabled = true;
  stop.hidden = false;
  await Promise.all(asked.map((side) => side.answer()));
  clearInterval(timer);
  for (const button of form.querySelectorAll('[name="do"], [data-again]')) button.disabled = false;
  stop.hidden = true;
  status.textContent = asked.length === 1 ? Luthier.t("The answer has ended.") : Luthier.t("Both answers have ended.");
  followEnd();
}

function say() {
  const text = message.value, asked = active();
  if (!text.trim() || !asked.length || sides.some((side) => side.isBusy)) { message.focus(); return; }
  for (const side of asked) side.say(text);
  message.value = "";
  message.focus();
  answerAll(asked);
}

function sayAgain(asked) {
  if (sides.some((side) => side.isBusy)) return;
  const ready = asked.filter((side) => side.takeAnswerBack());
  if (ready.length) answerAll(ready);
}

function stopAll() { for (const side of sides) side.controller?.abort(); }

async function save(button) {
  const status = button.parentElement.querySelector("[data-saved]");
  const body = new URLSearchParams(new FormData(form, button));
  button.disabled = true;
  try {
    const response = await Luthier.ask(button.formAction, { method: "POST", body, headers: { Accept: "application/json" } });
    if (!response.ok) throw await refusal(response);
    const saved = await response.json(), link = document.createElement("a");
    link.href = saved.address;
    link.textContent = saved.words;
    status.replaceChildren(`${Luthier.t("Saved as")} `, link);
  } catch (wrong) {
    const error = wrong.shown ?? { came: Luthier.t("the server cannot be reached"), do: Luthier.t("try again") };
    status.textContent = `${Luthier.t("Not saved")}: ${error.came}; ${error.do}`;
  }
  button.disabled = false;
}

// A thumb, or what the answer should have been.
async function give(button, side, bubble) {
  const isThumb = !button.value.startsWith("correct"), status = bubble.querySelector(isThumb ? "[data-notice]" : "[data-saved]");
  const body = new URLSearchParams(new FormData(form, button));
  button.disabled = true;
  try {
    const response = await Luthier.ask(button.formAction, { method: "POST", body, headers: { Accept: "application/json" } });
    if (!response.ok) throw await refusal(response);
    const given = await response.json(), turn = side.turns[Number(button.value.split(":")[2])];
    if (turn) turn.thumb = given.thumb;
    side.keep();
    for (const one of bubble.querySelectorAll(".thumbs button")) one.setAttribute("aria-pressed", String(one.value.startsWith(`${given.thumb}:`)));
    status.textContent = given.words;
    if (isThumb && given.thumb === "down") {
      const correction = bubble.querySelector("details.save");
      correction.open = true;
      correction.querySelector("textarea").focus();
    }
  } catch (wrong) {
    const error = wrong.shown ?? { came: Luthier.t("the server cannot be reached"), do: Luthier.t("try again") };
    status.textContent = visible(`${Luthier.t("Not kept")}: ${error.came}; ${error.do}`);
  }
  button.disabled = false;
}

if (form) {
  for (const section of form.querySelectorAll("[data-side]")) sides.push(new Side(section));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const button = event.submitter, side = sides.find((one) => one.section.contains(button));
    if (button?.name === "save") save(button);
    else if (button?.name === "said") give(button, side, button.closest(".turn"));
    else if (button?.value === "again") sayAgain(active());
    else say();
  });
  form.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    const side = sides.find((one) => one.section.contains(button)), bubble = button?.closest(".turn");
    if (!button || !side || !bubble) return;
    if (button.matches("[data-again]")) sayAgain([side]);
    if (button.matches("[data-copy-answer]")) {
      const place = [...side.list.children].indexOf(bubble);
      try {
        await navigator.clipboard.writeText(side.turns[place]?.content ?? "");
        button.textContent = Luthier.t("Copied");
      } catch { // a browser forbids it on plain HTTP
        getSelection().selectAllChildren(bubble.querySelector(".words"));
        button.textContent = Luthier.t("selected: press Ctrl+C");
      }
      setTimeout(() => { button.textContent = Luthier.t("Copy"); }, 1500);
    }
  });
  document.querySelector("[data-new]").addEventListener("click", () => { for (const side of sides) side.forget(); });
  form.querySelector("[data-stop]").addEventListener("click", stopAll);
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stopAll(); });
  addEventListener("pagehide", stopAll);
}
