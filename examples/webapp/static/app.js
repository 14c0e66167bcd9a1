// The page's state is its address: #q=words, #like=12, #groups, or nothing for the newest. So back, forward and bookmarks
// work, and there is one way to draw each state.

const $ = (id) => document.getElementById(id);
const words = $("words"), content = $("content"), status = $("status"), dialog = $("photo");
const PAUSE = 150; // milliseconds without a key before a search is sent

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { error: "the server can't be reached", hint: "Is make webapp still running?" };
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  let said;
  try {
    said = await answer.json();
  } catch {
    said = { error: `the server answered ${answer.status}` };
  }
  throw said;
}

// What was wrong in one line, and below it the figures and the way out.
function explain(where, { error, detail, hint }) {
  const line = document.createElement("strong");
  line.textContent = where ? `${where}: ${error}` : error;
  return [line, [detail, hint].filter(Boolean).join(" ")];
}

function state() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash === "groups") return { groups: true };
  if (hash.startsWith("q=")) return { q: hash.slice(2) };
  if (hash.startsWith("like=")) return { like: hash.slice(5) };
  return {};
}

// ---------------------------------------------------------------- drawing

const cards = new Map(); // photos by id that have been seen, for titles

function card(photo) {
  cards.set(String(photo.id), photo);
  const item = $("card").content.cloneNode(true);
  const image = item.querySelector("img");
  image.src = `/photos/${photo.id}/small.jpg`;
  item.querySelector(".name").textContent = photo.title;
  item.querySelector(".cosine").textContent = photo.cosine === undefined ? "" : photo.cosine.toFixed(3);
  item.querySelector("button").addEventListener("click", () => show(photo));
  return item;
}

function list(photos) {
  const items = document.createElement("ul");
  items.className = "photos";
  items.append(...photos.map(card));
  return items;
}

function message(kind, ...what) {
  const paragraph = document.createElement("p");
  paragraph.className = kind;
  paragraph.append(...what);
  return paragraph;
}

function group({ size, cohesion, photos }) {
  const section = document.createElement("section");
  section.className = "group";
  const head = document.createElement("h3");
  head.textContent = photos[0].title;
  const figures = document.createElement("p");
  figures.textContent = `${size} photos, mean cosine ${cohesion.toFixed(3)}`;
  section.append(head, figures, list(photos));
  return section;
}

const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
let running = new AbortController();

async function draw() {
  const now = state();
  if (document.activeElement !== words) words.value = now.q ?? "";
  $("to-photos").toggleAttribute("aria-current", !now.groups && now.q === undefined && now.like === undefined);
  $("to-groups").toggleAttribute("aria-current", Boolean(now.groups));
  // An answer that is late must not replace a newer one.
  running.abort();
  running = new AbortController();
  const { signal } = running;
  content.setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    if (now.groups) {
      $("title").textContent = "Groups of look-alikes";
      const { groups } = await ask("/api/groups", { signal });
      const all = document.createElement("div");
      all.className = "groups";
      all.append(...groups.map(group));
      content.replaceChildren(groups.length ? all : message("empty", "No two photos are alike yet."));
      status.textContent = count(groups.length, "group", "groups");
    } else {
      const query = new URLSearchParams(now.q !== undefined ? { q: now.q } : now.like !== undefined ? { like: now.like } : {});
      const { photos } = await ask(`/api/photos?${query}`, { signal });
      $("title").textContent = now.q !== undefined ? `“${now.q}”`
        : now.like !== undefined ? `Like ${cards.get(now.like)?.title ?? `photo ${now.like}`}` : "Newest";
      content.replaceChildren(list(photos));
      if (!photos.length) content.replaceChildren(message("empty", "No photos yet. Drop some here, or use Add photos."));
      status.textContent = `${count(photos.length, "photo", "photos")} in ${Math.round(performance.now() - started)} ms`;
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    content.replaceChildren(message("error", ...explain("", error)));
    status.textContent = "";
  }
  content.removeAttribute("aria-busy");
}

// ---------------------------------------------------------------- search

let waiting;
words.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const asked = words.value.trim();
    // One entry in the history for a search, not one for each key.
    const before = state().q !== undefined;
    history[before ? "replaceState" : "pushState"](null, "", asked ? `#q=${encodeURIComponent(asked)}` : "#");
    draw();
  }, PAUSE);
});
$("search").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", draw);
addEventListener("popstate", draw);
addEventListener("keydown", (event) => {
  if (event.key === "/" && !dialog.open && document.activeElement !== words) {
    event.preventDefault();
    words.focus();
  }
});

// ---------------------------------------------------------------- one photo

let shown;
function show(photo) {
  shown = photo;
  $("photo-title").textContent = photo.title;
  $("photo-image").src = `/photos/${photo.id}/large.jpg`;
  $("photo-image").alt = photo.title;
  dialog.showModal();
}
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("close", () => $("photo-image").removeAttribute("src"));
$("photo-like").addEventListener("click", () => {
  dialog.close();
  location.hash = `like=${shown.id}`;
  scrollTo(0, 0);
});
$("photo-delete").addEventListener("click", async () => {
  dialog.close();
  try {
    await ask(`/api/photos/${shown.id}`, { method: "DELETE" });
    notice("done", `${shown.title} is deleted`);
  } catch (error) {
    notice("error", ...explain(shown.title, error));
  }
  draw();
});

// ---------------------------------------------------------------- uploads

function notice(kind, ...what) {
  const item = document.createElement("li");
  item.className = kind;
  const line = document.createElement("span");
  line.append(...what);
  const close = document.createElement("button");
  close.type = "button";
  close.className = "close";
  close.setAttribute("aria-label", "Dismiss");
  close.addEventListener("click", () => item.remove());
  item.append(line, close);
  $("notices").append(item);
  // What went well goes away by itself; an error stays until it has been read.
  if (kind === "done") setTimeout(() => item.remove(), 6000);
  return item;
}

async function upload(files) {
  const good = [];
  for (const file of files) {
    const item = notice("busy", `${file.name} …`);
    try {
      const name = file.name.replace(/\.[^.]+$/, "").replace(/[-_]+/g, " ").trim();
      const title = name.slice(0, 1).toUpperCase() + name.slice(1);
      const photo = await ask(`/api/photos?title=${encodeURIComponent(title)}`, {
        method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" },
      });
      good.push(photo);
      item.remove();
      if (!photo.added) notice("done", `${file.name} is there already, as ${photo.title}`);
    } catch (error) {
      item.remove();
      notice("error", ...explain(file.name, error));
    }
  }
  const added = good.filter((photo) => photo.added).length;
  if (added) {
    notice("done", added === 1 ? `${good.find((photo) => photo.added).title} is in` : `${added} photos are in`);
    if (location.hash) location.hash = "";
    else draw();
  }
}
$("files").addEventListener("change", (event) => {
  upload([...event.target.files]);
  event.target.value = "";
});
let over = 0;
addEventListener("dragenter", () => document.body.classList.toggle("over", ++over > 0));
addEventListener("dragleave", () => document.body.classList.toggle("over", --over > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  document.body.classList.remove("over");
  upload([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) upload([...event.clipboardData.files]);
});

draw();
