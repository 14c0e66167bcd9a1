// A list of any length: as many elements as fit a few screens, wherever it is scrolled to.
//
// It consists of sections that know how many photos they have, and load them in pages from the front. A listbox is what
// screen readers know as a list of things to select; one tile is in the tab order, the arrow keys lead to the others.

import { figure, onDay } from "./api.js";
import { el } from "./dom.js";

const PAGE = 100, MOST = 1000, HEAD = 56;

export class Section {
  // `load(after, limit)` gives { photos, next }; `total` is the number of photos to come of it.
  constructor({ key = "", title = "", note = null, total, load, photos = [], next, skip = new Set() }) {
    Object.assign(this, { key, title, note, total, load, skip, photos: [], next, busy: null });
    this.take({ photos, next });
  }

  take({ photos, next }) {
    for (const photo of photos) if (!this.skip.has(photo.id)) this.photos.push(photo);
    this.next = next;
    // At its end a section has what it has, whatever was counted before.
    if (next === null) this.total = this.photos.length;
  }

  async ensure(length) {
    while (this.photos.length < Math.min(length, this.total) && this.next !== null) {
      this.busy ??= this.load(this.next, Math.min(MOST, Math.max(PAGE, length - this.photos.length)))
        .then((page) => this.take(page)).finally(() => { this.busy = null; });
      await this.busy;
    }
  }
}

export class Grid {
  constructor({ sections, label, selection, onopen, onselect, ondelete, onerror }) {
    Object.assign(this, { sections, selection, onopen, onselect, ondelete, onerror });
    this.tiles = new Map();
    this.heads = new Map();
    this.current = 0;
    this.anchor = null;
    this.list = el("div", {
      role: "listbox", className: "tiles", "aria-multiselectable": "true", "aria-label": label, "aria-describedby": "grid-help",
    });
    this.help = el("p", { id: "grid-help", className: "hidden" },
      "Arrow keys move, Enter opens, Space selects, Shift with arrow keys selects several, Delete deletes.");
    this.element = el("div", { className: "grid" }, this.help, this.list);
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("click", (event) => this.click(event));
    this.onscroll = () => this.schedule();
    addEventListener("scroll", this.onscroll, { passive: true });
    this.watch = new ResizeObserver(() => { this.layout(); this.render(); });
    this.watch.observe(this.element);
    this.speed = scrollY;
  }

  end() {
    removeEventListener("scroll", this.onscroll);
    clearTimeout(this.calm);
    this.watch.disconnect();
    this.ended = true;
  }

  get total() {
    return this.sections.reduce((sum, section) => sum + section.total, 0);
  }

  // ---------------------------------------------------------------- where everything is

  layout() {
    const width = this.element.clientWidth;
    if (!width) return;
    const gap = width < 560 ? 4 : 8;
    const wanted = width < 560 ? 104 : width < 1000 ? 150 : 190;
    this.columns = Math.max(2, Math.floor((width + gap) / (wanted + gap)));
    this.cell = (width - gap * (this.columns - 1)) / this.columns;
    this.step = this.cell + gap;
    let top = 0, first = 0;
    for (const section of this.sections) {
      section.top = top;
      section.first = first;
      section.head = section.title || section.note ? HEAD : 0;
      top += section.head + Math.ceil(section.total / this.columns) * this.step + (section.total ? 16 : 0);
      first += section.total;
    }
    this.element.style.height = `${Math.ceil(top)}px`;
    this.height = top;
  }

  locate(index) {
    const section = this.sections.findLast((s) => s.first <= index && s.total) ?? this.sections[0];
    const inside = index - section.first;
    const row = Math.floor(inside / this.columns);
    return { section, inside, row, x: (inside % this.columns) * this.step, y: section.top + section.head + row * this.step };
  }

  at(index) {
    const { section, inside } = this.locate(index);
    return section?.photos[inside];
  }

  indexOf(id) {
    for (const section of this.sections) {
      const inside = section.photos.findIndex((photo) => photo.id === id);
      if (inside >= 0) return section.first + inside;
    }
    return -1;
  }

  // ---------------------------------------------------------------- drawing

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      // While the list flies past, tiles stay empty: nobody sees what would be loaded.
      const fast = Math.abs(scrollY - this.speed) > 1.5 * innerHeight;
      this.speed = scrollY;
      clearTimeout(this.calm);
      if (fast) this.calm = setTimeout(() => this.render(), 90);
      this.render(fast);
    });
  }

  render(fast = false) {
    if (this.ended || !this.columns) return;
    const top = this.element.getBoundingClientRect().top;
    const from = -top - innerHeight / 2, to = -top + 1.5 * innerHeight;
    const keep = new Set(), heads = new Set();
    for (const section of this.sections) {
      const begin = section.top + section.head;
      const end = begin + Math.ceil(section.total / this.columns) * this.step;
      if (end < from || section.top > to) continue;
      if (section.head) heads.add(section);
      const firstRow = Math.max(0, Math.floor((from - begin) / this.step));
      const lastRow = Math.ceil((to - begin) / this.step);
      const first = firstRow * this.columns, last = Math.min(section.total, lastRow * this.columns);
      for (let inside = first; inside < last; inside++) keep.add(section.first + inside);
      if (!fast && last > section.photos.length) this.load(section, last);
    }
    const focused = this.list.contains(document.activeElement) ? this.current : -1;
    for (const [index, tile] of this.tiles) {
      if (keep.has(index) || index === focused) continue;
      tile.querySelector("img")?.removeAttribute("src");
      tile.remove();
      this.tiles.delete(index);
    }
    for (const index of keep) this.tile(index, fast);
    // Somebody who comes by Tab finds a tile that is in sight.
    if (focused < 0 && keep.size && !keep.has(this.current)) this.current = Math.min(...[...keep].filter((i) => this.locate(i).y >= -top));
    for (const [index, tile] of this.tiles) tile.tabIndex = index === this.current ? 0 : -1;
    for (const [section, head] of this.heads) {
      if (!heads.has(section)) {
        head.remove();
        this.heads.delete(section);
      }
    }
    for (const section of heads) this.head(section);
  }

  head(section) {
    let head = this.heads.get(section);
    if (!head) {
      head = el("div", { className: "section" }, section.title && el("h2", {}, section.title), section.note);
      this.heads.set(section, head);
      this.element.append(head);
    }
    head.style.transform = `translateY(${section.top}px)`;
  }

  tile(index, fast) {
    let tile = this.tiles.get(index);
    if (!tile) {
      tile = el("div", { role: "option", className: "tile", id: `tile-${index}`, tabIndex: -1 });
      tile.dataset.index = index;
      this.tiles.set(index, tile);
      // In order, because screen readers read them so.
      const after = [...this.tiles.keys()].filter((i) => i > index);
      this.list.insertBefore(tile, after.length ? this.tiles.get(Math.min(...after)) : null);
    }
    const { x, y } = this.locate(index);
    tile.style.transform = `translate(${x}px, ${y}px)`;
    tile.style.width = tile.style.height = `${this.cell}px`;
    tile.setAttribute("aria-posinset", index + 1);
    tile.setAttribute("aria-setsize", this.total);
    const photo = this.at(index);
    const selected = Boolean(photo && this.selection.has(photo.id));
    tile.setAttribute("aria-selected", selected);
    if (photo && tile.dataset.id !== String(photo.id)) {
      tile.dataset.id = photo.id;
      tile.setAttribute("aria-label", `${photo.title}, ${onDay(photo.date)}`);
      tile.title = photo.title;
      tile.replaceChildren(el("img", { alt: "", decoding: "async", draggable: false }),
        el("span", { className: "check" }), el("span", { className: "name", "aria-hidden": "true" }, photo.title));
    } else if (!photo && tile.dataset.id !== undefined || !photo && !tile.hasAttribute("aria-label")) {
      delete tile.dataset.id;
      tile.setAttribute("aria-label", `Photo ${figure(index + 1)}, loading`);
      tile.replaceChildren();
    }
    const image = tile.querySelector("img");
    if (image && !fast && !image.hasAttribute("src")) image.src = `/photos/${photo.id}/small.jpg`;
    return tile;
  }

  async load(section, length) {
    const before = section.photos.length;
    try {
      await section.ensure(length);
    } catch (error) {
      if (!this.ended) this.onerror(error);
      return;
    }
    if (this.ended || section.photos.length === before) return;
    this.layout();
    this.render();
  }

  // All photos between two places, loaded.
  async between(from, to) {
    const found = [];
    for (const section of this.sections) {
      const first = Math.max(from, section.first), last = Math.min(to, section.first + section.total - 1);
      if (first > last) continue;
      await section.ensure(last - section.first + 1);
      found.push(...section.photos.slice(first - section.first, last - section.first + 1));
    }
    return found;
  }

  // The place of a photo that may not be loaded yet; `key` names its section, if that is known.
  async find(id, key) {
    const section = this.sections.find((s) => s.key && s.key === key);
    for (let length = PAGE; section && this.indexOf(id) < 0 && section.photos.length < section.total; length += MOST) {
      await section.ensure(length);
    }
    this.layout();
    return this.indexOf(id);
  }

  without(ids) {
    for (const section of this.sections) {
      const left = section.photos.filter((photo) => !ids.has(photo.id));
      section.total -= section.photos.length - left.length;
      section.photos = left;
    }
    this.sections = this.sections.filter((section) => section.total || section.note);
    this.redraw();
  }

  redraw() {
    for (const tile of this.tiles.values()) tile.remove();
    for (const head of this.heads.values()) head.remove();
    this.tiles.clear();
    this.heads.clear();
    this.current = Math.max(0, Math.min(this.current, this.total - 1));
    this.layout();
    this.render();
  }

  // ---------------------------------------------------------------- focus and selection

  show(index) {
    const { y } = this.locate(index);
    const box = this.element.getBoundingClientRect();
    const above = document.querySelector("header").offsetHeight + 12, below = 84;
    if (box.top + y < above) scrollBy({ top: box.top + y - above, behavior: "instant" });
    else if (box.top + y + this.cell > innerHeight - below) scrollBy({ top: box.top + y + this.cell - innerHeight + below, behavior: "instant" });
  }

  focus(index) {
    if (!this.total || !this.columns) return;
    this.current = Math.max(0, Math.min(index, this.total - 1));
    this.show(this.current);
    this.tile(this.current, false).focus({ preventScroll: true });
    this.render();
  }

  scrollTo(section) {
    const top = this.element.getBoundingClientRect().top + scrollY + section.top;
    scrollTo({ top: top - document.querySelector("header").offsetHeight - 4, behavior: "instant" });
  }

  // Up and down lead to the same column, in the next section if this one ends.
  vertical(rows) {
    const { section, inside, row } = this.locate(this.current);
    const column = inside % this.columns, last = Math.ceil(section.total / this.columns) - 1;
    const wanted = row + rows, filled = this.sections.filter((s) => s.total), place = filled.indexOf(section);
    const inRow = (s, r) => s.first + Math.min(Math.max(0, Math.min(r, Math.ceil(s.total / this.columns) - 1)) * this.columns + column, s.total - 1);
    if (wanted < 0 && place > 0) return inRow(filled[place - 1], Infinity);
    if (wanted > last && place < filled.length - 1 && row === last) return inRow(filled[place + 1], 0);
    return inRow(section, wanted);
  }

  key(event) {
    const rows = Math.max(1, Math.floor(innerHeight / this.step) - 1);
    const moves = {
      ArrowLeft: () => this.current - 1, ArrowRight: () => this.current + 1,
      ArrowUp: () => this.vertical(-1), ArrowDown: () => this.vertical(1),
      PageUp: () => this.vertical(-rows), PageDown: () => this.vertical(rows),
      Home: () => 0, End: () => this.total - 1,
    };
    const photo = this.at(this.current);
    if (event.altKey) return;
    if (moves[event.key]) {
      event.preventDefault();
      const before = this.current;
      this.focus(moves[event.key]());
      if (event.shiftKey) this.range(this.anchor ?? before, this.current);
      else this.anchor = this.current;
    } else if (event.key === "Enter" && photo) {
      event.preventDefault();
      this.onopen(this.current);
    } else if (event.key === " " && photo) {
      event.preventDefault();
      this.toggle(this.current);
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.range(0, this.total - 1);
    } else if (event.key === "Escape" && this.selection.size) {
      event.preventDefault();
      this.selection.clear();
      this.selected();
    } else if ((event.key === "Delete" || event.key === "Backspace") && photo) {
      event.preventDefault();
      this.ondelete(this.selection.size ? [...this.selection.keys()] : [photo.id]);
    }
  }

  click(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const index = Number(tile.dataset.index);
    if (!this.at(index)) return;
    this.current = index;
    const select = event.target.closest(".check") || event.ctrlKey || event.metaKey || this.selection.size;
    if (event.shiftKey && this.anchor !== null) this.range(this.anchor, index);
    else if (event.shiftKey || select) this.toggle(index);
    else this.onopen(index);
    this.render();
    if (this.selection.size) tile.focus({ preventScroll: true });
  }

  toggle(index) {
    const photo = this.at(index);
    if (!this.selection.delete(photo.id)) this.selection.set(photo.id, photo);
    this.anchor = index;
    this.selected();
  }

  async range(a, b) {
    this.anchor ??= a;
    try {
      for (const photo of await this.between(Math.min(a, b), Math.max(a, b))) this.selection.set(photo.id, photo);
    } catch (error) {
      this.onerror(error);
    }
    this.layout();
    this.selected();
  }

  selected() {
    this.render();
    this.onselect();
  }
}
