// Uploads: two at a time; what went wrong is collected in one place until it has been dealt with.

import { address, ask, count, plain, sentence } from "./api.js";
import { $, button, el } from "./dom.js";

const AT_ONCE = 2;

export class Tray {
  // `ondone(added)` is called when all is done and something was added.
  constructor({ ondone }) {
    this.ondone = ondone;
    this.waiting = [];
    this.running = 0;
    this.reset();
    addEventListener("beforeunload", (event) => { if (this.running) event.preventDefault(); });
  }

  reset() {
    Object.assign(this, { total: 0, done: 0, added: [], known: [], failed: [] });
  }

  upload(files) {
    if (!files.length) return;
    if (!this.running && !this.failed.length) this.reset();
    this.total += files.length;
    this.waiting.push(...files);
    this.draw();
    while (this.running < AT_ONCE && this.waiting.length) this.work();
  }

  async work() {
    this.running++;
    while (this.waiting.length) {
      const file = this.waiting.shift();
      try {
        const photo = await ask(address("/api/photos", { title: title(file.name), date: local(file.lastModified) }), { method: "POST", body: file });
        (photo.added ? this.added : this.known).push({ ...photo, file: file.name });
      } catch (error) {
        this.failed.push({ file, error });
      }
      this.done++;
      this.draw();
    }
    if (--this.running) return;
    this.draw();
    if (this.added.length) this.ondone(this.added);
  }

  retry(failures) {
    this.failed = this.failed.filter((failure) => !failures.includes(failure));
    this.total -= failures.length;
    this.done -= failures.length;
    this.upload(failures.map(({ file }) => file));
  }

  dismiss(failures) {
    this.failed = this.failed.filter((failure) => !failures.includes(failure));
    this.draw();
    if (!this.failed.length) this.close();
  }

  close() {
    if (this.running) return;
    this.reset();
    this.draw();
    $("main").focus({ preventScroll: true });
  }

  draw() {
    const tray = $("tray"), { failed, added, known, total, done } = this;
    const held = tray.contains(document.activeElement) && document.activeElement.dataset.for;
    tray.hidden = !total;
    if (!total) return tray.replaceChildren();
    const busy = Boolean(this.running);
    const said = busy ? `Adding ${Math.min(done + 1, total)} of ${count(total, "photo")}`
      : added.length ? `${count(added.length, "photo")} added` : known.length && !failed.length ? "Nothing new" : "No photo added";
    const head = el("div", { className: "head" }, el("h2", {}, said),
      !busy && el("button", { type: "button", className: "close", "aria-label": "Close", onclick: () => this.close() }));
    const parts = [head];
    if (busy) parts.push(el("progress", { max: total, value: done, "aria-label": "Uploads" }));
    const notes = el("div", { className: "notes", role: "status" });
    if (!busy && added.length) notes.append(el("p", {}, el("a", { href: "/?sort=added" }, "Show what was added")));
    if (known.length) {
      notes.append(el("p", {}, known.length === 1 ? `${known[0].file} is here already, as ${known[0].title}` : `${known.length} are here already`));
    }
    parts.push(notes);
    if (failed.length) {
      parts.push(el("div", { className: "failed" },
        el("h3", {}, `${count(failed.length, "file")} couldn’t be added`),
        failed.length > 1 && el("div", { className: "actions" },
          button("Retry all", () => this.retry([...failed])), button("Dismiss all", () => this.dismiss([...failed])))));
      parts.push(el("ul", { className: "errors", tabIndex: 0, "aria-label": "Files that couldn’t be added" }, ...failed.map((failure) => this.failure(failure))));
    }
    tray.replaceChildren(...parts);
    if (held) tray.querySelector(`[data-for="${CSS.escape(held)}"]`)?.focus();
  }

  failure(failure) {
    const { file, error } = failure, what = plain(error);
    // The message says what the title says in plain words; the figures and the way out are below it.
    const rest = [error.error && sentence(error.error) !== what && `${sentence(error.error)}.`, error.detail, error.hint].filter(Boolean).join(" ");
    const label = (text) => `${text} ${file.name}`;
    const act = (text, onclick) => {
      const made = button(text, onclick);
      made.setAttribute("aria-label", label(text));
      made.dataset.for = label(text);
      return made;
    };
    return el("li", {},
      el("p", { className: "file" }, file.name),
      el("p", { className: "what" }, what),
      rest && el("p", { className: "small" }, rest),
      error.sqlstate && el("p", { className: "small" }, `SQLSTATE ${error.sqlstate}`),
      el("div", { className: "actions" }, act("Retry", () => this.retry([failure])), act("Dismiss", () => this.dismiss([failure]))));
  }
}

function title(name) {
  const words = name.replace(/\.[^.]+$/, "").replace(/[-_]+/g, " ").trim();
  return words.slice(0, 1).toUpperCase() + words.slice(1);
}

// The file's date on this computer's clock.
function local(milliseconds) {
  return new Date(milliseconds - 60000 * new Date(milliseconds).getTimezoneOffset()).toISOString().slice(0, 19);
}

// The files of a drop, those in folders included.
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const files = [];
  async function walk(entry) {
    if (entry.isFile) files.push(await new Promise((done, failed) => entry.file(done, failed)));
    else {
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((done, failed) => reader.readEntries(done, failed));
        if (!some.length) break;
        for (const inside of some) await walk(inside);
      }
    }
  }
  for (const entry of entries) await walk(entry);
  return files;
}
