// The page's state is its address: ?q=words, ?like=12, ?album=3, ?group=4, ?view=albums, ?view=groups, or nothing for all
// photos; &photo=12 opens one of them, &month=2026-05 scrolls to it, &all=1 goes on beyond the relevant. So back, forward
// and bookmarks work, and there is one way to draw each state.

import { address, ask, count, figure, inMonth, plain, sentence } from "./api.js";
import { card, create, fill, link, remove, rename } from "./albums.js";
import { $, button, el, toast } from "./dom.js";
import { Grid, Section } from "./grid.js";
import { Tray, dropped } from "./tray.js";
import { Viewer } from "./viewer.js";

const words = $("words"), content = $("content");
const PAUSE = 150; // milliseconds without a key before a search is sent
const MOST_IN_DOWNLOAD = 1000; // as the server has it
const FIRST = 200; // photos that a search shows before it compares all

// ---------------------------------------------------------------- state

function state() {
  const given = new URLSearchParams(location.search);
  const number = (name) => /^\d{1,15}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : undefined;
  return {
    view: given.get("view") ?? undefined, q: given.get("q")?.trim() || undefined, like: number("like"), album: number("album"),
    group: number("group"), sort: given.get("sort") ?? undefined, month: given.get("month") ?? undefined,
    all: given.get("all") ? 1 : undefined, photo: number("photo"),
  };
}

// A change of the photo, of the month or to all results draws no new list.
const listOf = (now) => JSON.stringify({ ...now, photo: 0, month: 0, all: 0 });

// `from` tells a later close that it may go back instead of on.
function go(path, { replace = false, from } = {}) {
  history[replace ? "replaceState" : "pushState"](from ? { from } : replace ? history.state : null, "", path);
  draw();
}
const change = (what, options) => go(address("/", { ...state(), ...what }), options);

let grid = null, drawn = null, opened = null, album = null;
let running = new AbortController();
const selection = new Map();
// Where each list was scrolled to, for the way back. The browser can't know: it restores before the list is drawn.
const places = new Map();
history.scrollRestoration = "manual";

// ---------------------------------------------------------------- drawing

async function draw({ again = false, back = false } = {}) {
  const now = state();
  if (document.activeElement !== words) words.value = now.q ?? "";
  words.placeholder = now.album !== undefined ? "Search this album" : "Search by words";
  const plainList = now.q === undefined && now.like === undefined && now.group === undefined;
  for (const [id, on] of [["to-photos", !now.view && now.album === undefined && plainList],
    ["to-albums", now.view === "albums" || now.album !== undefined && plainList], ["to-groups", now.view === "groups"]]) {
    if (on) $(id).setAttribute("aria-current", "page");
    else $(id).removeAttribute("aria-current");
  }
  const wanted = listOf(now);
  if (again || wanted !== drawn) {
    if (drawn) places.set(drawn, scrollY);
    const stay = again ? scrollY : back ? places.get(wanted) ?? null : null;
    drawn = wanted;
    if (!again) selection.clear();
    await drawList(now, stay);
    if (drawn !== wanted) return;
  }
  if (grid && now.all && grid.more) await grid.more();
  if (now.month !== undefined && now.photo === undefined && grid && grid.month !== now.month) {
    const section = grid.sections.find((s) => s.key === now.month);
    grid.month = now.month;
    if (section) grid.scrollTo(section);
  }
  await drawPhoto(now);
}

async function drawList(now, stay) {
  clearTimeout(retry);
  // An answer that is late must not replace a newer one.
  running.abort();
  running = new AbortController();
  const { signal } = running;
  content.setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    const show = now.view === "albums" ? albumsPage : now.view === "groups" ? groupsPage
      : now.q !== undefined || now.like !== undefined ? searchPage : datesPage;
    const drawnPage = await show(now, signal);
    const took = Math.round(performance.now() - started);
    grid?.end();
    ({ grid = null, album = null } = drawnPage);
    title(drawnPage.title);
    $("tools").replaceChildren(...drawnPage.tools ?? []);
    content.replaceChildren(...drawnPage.parts);
    $("status").textContent = drawnPage.status ? drawnPage.status(took) : "";
    if (stay === null) scrollTo(0, 0);
    if (grid) {
      grid.layout();
      if (stay !== null) scrollTo(0, stay);
      grid.render();
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    failed(error);
  }
  content.removeAttribute("aria-busy");
  bar();
}

function title(text) {
  $("title").textContent = text;
  document.title = text === "Photos" ? "Photos" : `${text} – Photos`;
}

// While nothing answers, the page asks again now and then; what it says stays, with the focus that may be on it.
const AGAIN = 5000;
let retry;

function failed(error) {
  clearTimeout(retry);
  if (error.down) {
    const waiting = drawn;
    retry = setTimeout(() => { if (drawn === waiting) draw({ again: true }); }, AGAIN);
    const said = content.querySelector(".empty.down");
    if (said?.dataset.status === String(error.status)) return;
  }
  grid?.end();
  grid = album = null;
  $("tools").replaceChildren();
  $("status").textContent = "";
  if (!error.down) title(error.status === 404 ? "Not found" : "That didn’t work");
  content.replaceChildren(error.down
    ? empty("down", error.status ? "The database can’t be reached" : "The server can’t be reached",
      error.status ? "The photos are safe; this page continues once it answers." : error.hint,
      button("Try again", () => draw({ again: true }), "main"))
    : empty("lost", sentence(error.error), [error.detail, error.hint].filter(Boolean).join(" ") || "Perhaps it has been deleted.",
      el("a", { className: "button", href: "/" }, "All photos")));
  if (error.down) content.querySelector(".empty").dataset.status = String(error.status);
}

function empty(kind, head, text, ...actions) {
  return el("div", { className: `empty ${kind}` }, el("h2", {}, head), text && el("p", {}, text),
    actions.length > 0 && el("div", { className: "actions" }, ...actions));
}

const adder = () => button("Add photos", () => $("files").click(), "main");

function makeGrid(sections, label) {
  return new Grid({
    sections, label, selection,
    onopen: (index) => change({ photo: grid.at(index).id }, { from: "list" }),
    onselect: bar,
    ondelete: (ids) => erase(ids),
    onerror: (error) => toast(plain(error), { action: "Try again", onaction: () => draw({ again: true }) }),
  });
}

// Photos by month, or by arrival: all, those of an album or of a group.
async function datesPage(now, signal) {
  const filter = { album: now.album, group: now.group };
  const found = await ask(address("/api/months", filter), { signal });
  const total = found.months.reduce((sum, month) => sum + month.total, 0);
  const own = now.album !== undefined ? { id: now.album, name: found.name } : null;
  const load = (more) => (after, limit) => ask(address("/api/photos", { ...filter, ...more, after, limit }));
  const sections = now.sort === "added" ? [new Section({ total, load: load({ sort: "added" }) })]
    : found.months.map(({ month, total }) => new Section({ key: month, title: inMonth(month), total, load: load({ month }) }));
  // What is seen first comes with the list, and not after it.
  if (sections.length) await sections[0].ensure(60);
  const page = {
    title: own?.name ?? (now.group !== undefined ? "Look-alikes" : now.sort === "added" ? "Last added" : "Photos"),
    status: () => count(total, "photo"), album: own, parts: [], tools: [],
  };
  if (own) page.tools.push(button("Rename", () => rename(own, () => draw({ again: true }))), button("Remove album", () => remove(own, () => go("/?view=albums"))));
  if (!total) {
    page.status = null;
    page.parts = [own ? empty("album", "This album is empty", "Select photos and choose “Add to album”.", el("a", { className: "button main", href: "/" }, "All photos"))
      : now.group !== undefined ? empty("lost", "This group is gone", "Its photos have been deleted or have joined other groups.", el("a", { className: "button", href: "/?view=groups" }, "All groups"))
        : empty("none", "No photos yet", "Drop photos or folders anywhere on this page, or choose them.", adder())];
    return page;
  }
  page.grid = makeGrid(sections, page.title);
  page.parts = [page.grid.element];
  if (!own && now.group === undefined) {
    page.tools.push(el("a", { className: "button", href: now.sort === "added" ? "/" : "/?sort=added" }, now.sort === "added" ? "By date" : "Last added"));
  }
  if (now.sort !== "added" && sections.length > 1) {
    const jump = el("select", { "aria-label": "Go to a month", onchange: () => change({ month: jump.value }, { replace: true }) },
      ...sections.map(({ key, title, total }) => el("option", { value: key, selected: key === now.month }, `${title} (${figure(total)})`)));
    page.tools.unshift(jump);
  }
  return page;
}

// What fits words or a photo: the relevant, and the others on request.
async function searchPage(now, signal) {
  const asked = { q: now.q, like: now.like, album: now.album };
  const [found, named, inside] = await Promise.all([
    ask(address("/api/photos", { ...asked, limit: FIRST }), { signal }),
    now.like !== undefined ? ask(`/api/photos/${now.like}`, { signal }) : null,
    now.album !== undefined ? ask(address("/api/months", { album: now.album }), { signal }) : null,
  ]);
  const page = { title: now.q !== undefined ? `“${now.q}”` : `Like ${named.title}`, tools: [], parts: [], album: null };
  if (inside) page.tools.push(el("a", { className: "button", href: address("/", { q: now.q }) }, "Search all photos"));
  const where = inside ? ` in ${inside.name}` : "";
  const total = found.total - (now.like !== undefined && found.total ? 1 : 0);
  if (!total) {
    page.parts = [inside ? empty("nothing", "Nothing matches", `There are no photos${where}.`, el("a", { className: "button main", href: address("/", { q: now.q }) }, "Search all photos"))
      : now.like !== undefined ? empty("nothing", "Nothing matches", "This is the only photo.", adder())
        : empty("none", "No photos yet", "Add some, then search for what is in them.", adder())];
    return page;
  }
  const shown = new Set(found.photos.map((photo) => photo.id));
  const rest = total - shown.size;
  const sections = [new Section({ total: shown.size, photos: found.photos, next: null, load: null })];
  const others = () => new Section({
    key: "rest", total: rest, skip: shown, next: undefined,
    title: found.cut ? "Less likely" : "", load: (after, limit) => ask(address("/api/photos", { ...asked, rest: 1, after, limit })),
  });
  page.grid = makeGrid(sections, page.title);
  page.parts = [page.grid.element];
  if (!found.cut) {
    if (rest) page.grid.sections.push(others());
    page.status = (took) => `${count(total, "photo")}${where}, nearest first, in ${took} ms`;
    return page;
  }
  page.status = (took) => shown.size ? `${count(shown.size, "photo")}${where} in ${took} ms` : "";
  if (!rest) return page;
  const more = el("div", { className: "more" });
  const offer = button(`Show ${figure(rest)} more, less likely`, () => change({ all: 1 }, { replace: true }));
  if (shown.size) more.append(offer);
  else {
    offer.textContent = `Show the nearest of ${count(rest, "photo")}`;
    more.append(empty("nothing", `Nothing here looks like “${now.q}”`, `No photo${where} is close enough to these words.`, offer));
  }
  page.parts.push(more);
  page.grid.more = async () => {
    page.grid.more = null;
    const held = more.contains(document.activeElement);
    const section = others();
    await section.ensure(60).catch((error) => toast(plain(error)));
    more.remove();
    if (page.grid.ended) return;
    page.grid.sections.push(section);
    page.grid.layout();
    page.grid.render();
    $("status").textContent = shown.size ? `${count(shown.size, "photo")}, then ${figure(rest)} less likely` : `Nothing relevant; ${count(rest, "photo")}, nearest first`;
    if (held) page.grid.focus(section.first);
  };
  return page;
}

async function groupsPage(now, signal) {
  const { groups } = await ask("/api/groups", { signal });
  if (!groups.length) {
    return { title: "Groups of look-alikes", parts: [empty("nothing", "No groups yet", "Photos that look alike come together here as they are added.", adder())] };
  }
  return {
    title: "Groups of look-alikes", status: () => count(groups.length, "group"),
    parts: [el("ul", { className: "cards" }, ...groups.map(({ id, title, total, photos }) =>
      card({ href: address("/", { group: id }), name: title, total, photos })))],
  };
}

async function albumsPage(now, signal) {
  const { albums } = await ask("/api/albums", { signal });
  const fresh = () => create((made) => go(link(made)));
  if (!albums.length) return { title: "Albums", parts: [empty("none", "No albums yet", "An album is a choice of photos; a photo can be in several.", button("New album", fresh, "main"))] };
  return {
    title: "Albums", status: () => count(albums.length, "album"), tools: [button("New album", fresh, "main")],
    parts: [el("ul", { className: "cards" }, ...albums.map((a) => card({ href: link(a), name: a.name, total: a.total, photos: a.photos ?? [] })))],
  };
}

// ---------------------------------------------------------------- one photo

const viewer = new Viewer({
  onmove: (id) => {
    opened = id;
    history.replaceState(history.state, "", address("/", { ...state(), photo: id }));
  },
  onclose: () => {
    opened = null;
    if (state().photo === undefined) return;
    // Back, where this page opened it; so that no entry of the history shows the same list twice.
    if (history.state?.from === "list") history.back();
    else change({ photo: undefined }, { replace: true });
  },
  onlike: (photo) => go(address("/", { like: photo.id })),
  onalbum: (photo) => fill([photo.id], (to) => to ? go(link(to)) : viewer.facts(photo.id)),
  ondelete: (photo) => erase([photo.id]),
});

async function drawPhoto(now) {
  if (now.photo === undefined) {
    viewer.close();
    opened = null;
    return;
  }
  if (opened === now.photo) return;
  opened = now.photo;
  const asked = { q: now.q, like: now.like };
  let index = grid ? grid.indexOf(now.photo) : -1, photo = index >= 0 ? grid.at(index) : null;
  if (!photo) {
    // A link to a photo that the list has not loaded yet; its month tells where it is.
    try {
      photo = await ask(address(`/api/photos/${now.photo}`, asked));
    } catch (error) {
      opened = null;
      toast(error.status === 404 ? "That photo doesn’t exist any more" : plain(error));
      history.replaceState(null, "", address("/", { ...state(), photo: undefined }));
      return;
    }
    if (grid) index = await grid.find(now.photo, photo.date.slice(0, 7)).catch(() => -1);
    if (state().photo !== now.photo) return;
  }
  viewer.show(grid, index, photo, asked);
}

// ---------------------------------------------------------------- selection, deletion

function bar() {
  const n = selection.size;
  $("bar").hidden = !n;
  $("bar-count").textContent = n ? `${figure(n)} selected` : "";
  $("bar-remove").hidden = !album;
  document.body.classList.toggle("selecting", n > 0);
}

function clear() {
  selection.clear();
  bar();
  grid?.render();
}

const chosen = () => [...selection.keys()];
$("bar-clear").addEventListener("click", () => { clear(); grid?.focus(grid.current); });
$("bar-delete").addEventListener("click", () => erase(chosen()));
$("bar-album").addEventListener("click", () => fill(chosen(), (to) => { clear(); if (to) go(link(to)); }));
$("bar-download").addEventListener("click", () => {
  if (selection.size > MOST_IN_DOWNLOAD) {
    toast(`A download has at most ${count(MOST_IN_DOWNLOAD, "photo")}`);
    return;
  }
  const anchor = el("a", { href: `/download?ids=${chosen().join(",")}`, download: "" });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
});
$("bar-remove").addEventListener("click", async () => {
  const ids = chosen(), from = album;
  try {
    await ask(`/api/albums/${from.id}/photos`, { method: "DELETE", json: { ids } });
    clear();
    toast(`${count(ids.length, "photo")} removed from ${from.name}`, {
      action: "Undo", onaction: () => attempt(() => ask(`/api/albums/${from.id}/photos`, { method: "POST", json: { ids } })),
    });
    draw({ again: true });
  } catch (error) {
    toast(plain(error));
  }
});

async function attempt(what) {
  try {
    await what();
    await draw({ again: true });
  } catch (error) {
    toast(plain(error));
  }
}

let undoable = null; // the last offer to undo
// The server keeps deleted photos for some seconds; the offer to bring them back ends a little earlier.
async function erase(ids) {
  let gone;
  try {
    gone = await ask("/api/photos/delete", { method: "POST", json: { ids } });
  } catch (error) {
    toast(plain(error));
    return;
  }
  const deleted = new Set(ids);
  for (const id of ids) selection.delete(id);
  const seen = $("viewer").open ? viewer.index : -1;
  if (grid) {
    grid.without(deleted);
    // A search knows how many fit, a list by date how many there are.
    if (state().q === undefined && state().like === undefined) $("status").textContent = count(grid.total, "photo");
    if (!grid.total) draw({ again: true });
  }
  if ($("viewer").open) {
    const next = grid && seen >= 0 && grid.total ? Math.min(seen, grid.total - 1) : -1;
    if (next >= 0) {
      viewer.index = next;
      await viewer.to(next);
    } else viewer.close();
  } else grid?.focus(grid.current);
  bar();
  const one = gone.ids.length === 1;
  undoable = toast(gone.ids.length ? `${count(gone.ids.length, "photo")} deleted` : "Already deleted", gone.ids.length ? {
    seconds: Math.max(2, gone.undo_seconds - 4), action: "Undo",
    onaction: () => attempt(async () => {
      const { ids: back } = await ask("/api/photos/restore", { method: "POST", json: { ids: gone.ids } });
      if (back.length < gone.ids.length) toast(one ? "It is gone for good" : `${count(gone.ids.length - back.length, "photo")} are gone for good`);
    }),
  } : {});
}

// ---------------------------------------------------------------- search, links, keys

let waiting;
words.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(search, PAUSE);
});
function search() {
  clearTimeout(waiting);
  const asked = words.value.trim(), now = state();
  if (asked === (now.q ?? "")) return;
  // One entry in the history for a search, not one for each key.
  go(address("/", { q: asked, album: now.album }), { replace: now.q !== undefined });
}
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
  grid?.focus(0);
});

addEventListener("popstate", () => draw({ back: true }));
addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href]");
  if (!anchor || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const to = new URL(anchor.href);
  if (to.origin !== location.origin || to.pathname !== "/" || to.hash) return;
  event.preventDefault();
  go(to.pathname + to.search);
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && !document.querySelector("dialog[open]") && !event.target.matches("input, select")) {
    event.preventDefault();
    words.focus();
    words.select();
  } else if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey && undoable?.isConnected && !event.target.matches("input")) {
    event.preventDefault();
    undoable.querySelector("button:not(.close)")?.click();
  } else if (event.key === "ArrowDown" && event.target === words && grid) {
    event.preventDefault();
    grid.focus(grid.current);
  } else if (event.key === "Escape" && selection.size && !document.querySelector("dialog[open]") && !event.defaultPrevented) {
    clear();
  }
});
$("ask-cancel").addEventListener("click", () => $("ask").close());
$("ask").addEventListener("click", (event) => event.target === $("ask") && $("ask").close());

// ---------------------------------------------------------------- uploads

const tray = new Tray({ ondone: () => draw({ again: true }) });
$("files").addEventListener("change", (event) => {
  tray.upload([...event.target.files]);
  event.target.value = "";
});
let over = 0;
const carries = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => { if (carries(event)) document.body.classList.toggle("over", ++over > 0); });
addEventListener("dragleave", (event) => { if (carries(event)) document.body.classList.toggle("over", --over > 0); });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  over = 0;
  document.body.classList.remove("over");
  tray.upload(await dropped(event.dataTransfer));
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) tray.upload([...event.clipboardData.files]);
});

draw();
