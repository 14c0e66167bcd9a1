// One photo, large: arrow keys and swipes lead through the list, details say what is known of it.

import { address, ask, count, figure, onMinute, plain, size } from "./api.js";
import { $, button, el } from "./dom.js";

const dialog = $("viewer"), picture = $("viewer-image");
const DATED = { camera: "", file: "The file’s date", upload: "The time of the upload" };

const signed = (cosine) => cosine.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");

export class Viewer {
  // `onmove(id)` and `onclose()` keep the address; `onlike`, `onalbum` and `ondelete` get the photo.
  constructor({ onmove, onclose, onlike, onalbum, ondelete }) {
    Object.assign(this, { onmove, onclose, onlike, onalbum, ondelete, grid: null, index: -1, photo: null, asked: {} });
    $("viewer-close").addEventListener("click", () => dialog.close());
    $("viewer-previous").addEventListener("click", () => this.step(-1));
    $("viewer-next").addEventListener("click", () => this.step(1));
    $("viewer-like").addEventListener("click", () => this.onlike(this.photo));
    $("viewer-album").addEventListener("click", () => this.onalbum(this.photo));
    $("viewer-delete").addEventListener("click", () => this.ondelete(this.photo));
    $("viewer-details").addEventListener("click", () => this.details(!this.open));
    picture.addEventListener("load", () => picture.classList.remove("loading"));
    dialog.addEventListener("close", () => {
      picture.removeAttribute("src");
      const { index, grid } = this;
      this.photo = null;
      this.onclose();
      // The keyboard is where it was.
      if (grid && index >= 0 && !grid.ended) grid.focus(index);
    });
    dialog.addEventListener("keydown", (event) => this.key(event));
    let start = null;
    dialog.querySelector(".stage").addEventListener("pointerdown", (event) => { start = event.pointerType === "touch" ? event : null; });
    dialog.querySelector(".stage").addEventListener("pointerup", (event) => {
      const across = start ? event.clientX - start.clientX : 0;
      if (Math.abs(across) > 60 && Math.abs(across) > 2 * Math.abs(event.clientY - start.clientY)) this.step(across < 0 ? 1 : -1);
      start = null;
    });
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const keys = {
      ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1), Home: () => this.to(0), End: () => this.to(this.grid.total - 1),
      i: () => this.details(!this.open), Delete: () => this.ondelete(this.photo),
    };
    // The details scroll by arrow keys only up and down, so these are free there, too.
    if (!keys[event.key] || !this.photo) return;
    event.preventDefault();
    keys[event.key]();
  }

  // `photo` may be a number alone, if the list doesn't have it.
  async show(grid, index, photo, asked) {
    Object.assign(this, { grid, index, asked });
    if (!dialog.open) {
      dialog.showModal();
      this.details(innerWidth >= 1100, false);
      $("viewer-close").focus();
    }
    this.draw(photo);
  }

  async step(by) {
    if (this.grid && this.index >= 0) await this.to(this.index + by);
  }

  async to(index) {
    if (!this.grid || this.index < 0 || index < 0 || index >= this.grid.total) return;
    await this.grid.between(index, index);
    this.grid.layout();
    const photo = this.grid.at(index);
    if (!photo || !dialog.open) return;
    this.index = index;
    this.draw(photo);
    this.onmove(photo.id);
  }

  draw(photo) {
    this.photo = photo;
    const total = this.grid?.total ?? 0, placed = this.index >= 0;
    picture.classList.add("loading");
    picture.src = `/photos/${photo.id}/large.jpg`;
    picture.alt = photo.title ?? "";
    // An image has its final size before it has loaded.
    if (photo.width) Object.assign(picture, { width: photo.width, height: photo.height });
    $("viewer-title").textContent = photo.title ?? "";
    $("viewer-place").textContent = placed ? `${figure(this.index + 1)} of ${figure(total)}` : "";
    // Disabled buttons would drop the focus to the page.
    for (const [id, off] of [["viewer-previous", !placed || this.index === 0], ["viewer-next", !placed || this.index === total - 1]]) {
      if (off && document.activeElement === $(id)) $("viewer-close").focus();
      $(id).disabled = off;
    }
    $("viewer-download").href = `/download?ids=${photo.id}`;
    this.facts(photo.id);
    for (const near of [this.index + 1, this.index - 1]) {
      const next = placed && near >= 0 && near < total && this.grid.at(near);
      if (next) new Image().src = `/photos/${next.id}/large.jpg`;
    }
  }

  close() {
    if (dialog.open) dialog.close();
  }

  details(open, remember = true) {
    this.open = remember ? open : this.open ?? open;
    $("details").hidden = !this.open;
    $("viewer-details").setAttribute("aria-pressed", this.open);
  }

  async facts(id) {
    const place = $("viewer-facts");
    try {
      const photo = await ask(address(`/api/photos/${id}`, this.asked));
      if (this.photo?.id !== id) return;
      if (!this.photo.title) Object.assign(this.photo, photo);
      picture.alt = $("viewer-title").textContent = photo.title;
      if (!picture.width) Object.assign(picture, { width: photo.width, height: photo.height });
      place.replaceChildren(...this.list(photo));
    } catch (error) {
      if (this.photo?.id === id) place.replaceChildren(el("p", { className: "error" }, plain(error)));
    }
  }

  list(photo) {
    const facts = el("dl");
    const add = (name, ...what) => facts.append(el("div", {}, el("dt", {}, name), el("dd", {}, ...what)));
    add("Date", onMinute(photo.date), DATED[photo.dated_by] && el("small", {}, DATED[photo.dated_by]));
    add("File", `${photo.format}, ${figure(photo.width)} × ${figure(photo.height)} pixels, ${size(photo.bytes)}`);
    const links = (items) => el("ul", { className: "chips" }, ...items.map((item) => el("li", {}, item)));
    if (photo.tags?.length) add("Tags", links(photo.tags.map((tag) => el("a", { href: address("/", { q: tag }) }, tag))));
    if (photo.albums.length) {
      add("Albums", links(photo.albums.map(({ id, name }) => el("a", { href: address("/", { album: id }) }, name))));
    }
    if (photo.group_total > 1) {
      add("Look-alikes", el("a", { href: address("/", { group: photo.group }) }, `A group of ${count(photo.group_total, "photo")}`));
    }
    if (!photo.why) return [facts];
    const why = el("div", { className: "why" }, el("h3", {}, "Why this photo"));
    if (photo.relevance !== undefined && photo.relevance !== null) {
      why.append(el("p", {}, `Relevance ${photo.relevance.toFixed(2)} of 1`));
    }
    if (photo.suits?.length) why.append(el("p", { className: "small" }, "Words for both:"), links(photo.suits));
    const bars = el("ul", { className: "bars" });
    const whole = photo.why[0], parts = photo.why.slice(1);
    // The words of one word are the whole.
    for (const { word, cosine } of parts.length > 1 ? photo.why : [whole]) {
      const bar = el("i");
      bar.style.width = `${Math.round(100 * Math.min(1, Math.max(0, cosine) / (this.asked.like ? 1 : 0.5)))}%`;
      bars.append(el("li", { className: word === whole.word && photo.why.length > 1 ? "whole" : "" },
        el("span", {}, this.asked.like ? `Like ${word}` : word),
        el("span", { className: "figure" }, signed(cosine)), el("span", { className: "track", "aria-hidden": "true" }, bar)));
    }
    why.append(bars, el("p", { className: "small" }, this.asked.like
      ? "The cosine of the two photos; 1 is the same photo." : "How near the photo is to the search, and to each of its words (cosine)."));
    return [facts, why];
  }
}
