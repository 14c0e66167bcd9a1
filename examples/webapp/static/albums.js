// Albums: the page of all, and the dialogues that create, fill, rename and remove one.

import { address, ask, count, plain } from "./api.js";
import { $, dialogue, el, toast } from "./dom.js";

// A group of photos as a card: up to four of them, a name, and how many there are.
export function card({ href, name, total, photos, note }) {
  const mosaic = el("span", { className: `mosaic of-${photos.length}` },
    ...photos.map((id) => el("img", { src: `/photos/${id}/small.jpg`, alt: "", loading: "lazy", width: 240, height: 240 })));
  return el("li", {}, el("a", { className: "card", href }, mosaic,
    el("span", { className: "name" }, name), el("span", { className: "total" }, note ?? count(total, "photo"))));
}

function named(value = "") {
  const input = el("input", { id: "ask-name", type: "text", maxLength: 100, required: true, value, autocomplete: "off" });
  return [input, el("label", { htmlFor: "ask-name" }, "Name"), input];
}

const explain = (error) => error.status === 409 ? "An album of that name exists already." : plain(error);

export function create(onmade) {
  const [input, ...body] = named();
  dialogue({
    title: "New album", body, ok: "Create", explain,
    answer: async () => onmade(await ask("/api/albums", { method: "POST", json: { name: input.value } })),
  });
}

export function rename(album, onrenamed) {
  const [input, ...body] = named(album.name);
  dialogue({
    title: "Rename album", body, ok: "Rename", explain,
    answer: async () => onrenamed(await ask(`/api/albums/${album.id}`, { method: "PATCH", json: { name: input.value } })),
  });
  input.select();
}

export function remove(album, onremoved) {
  dialogue({
    title: `Remove “${album.name}”?`, body: [el("p", {}, "The album goes, its photos stay.")], ok: "Remove album", danger: true, explain,
    answer: async () => {
      await ask(`/api/albums/${album.id}`, { method: "DELETE" });
      onremoved();
    },
  });
}

// Asks for an album, and puts the photos in.
export async function fill(ids, ondone) {
  let albums;
  try {
    ({ albums } = await ask("/api/albums"));
  } catch (error) {
    toast(plain(error));
    return;
  }
  const put = async (album) => {
    const { ids: added } = await ask(`/api/albums/${album.id}/photos`, { method: "POST", json: { ids } });
    toast(added.length ? `${count(added.length, "photo")} added to ${album.name}` : `Already in ${album.name}`,
      { action: "Show", onaction: () => ondone(album) });
    ondone(null);
  };
  if (!albums.length) {
    create(put);
    return;
  }
  const choices = albums.map((album) => el("li", {}, el("button", {
    type: "button", onclick: async () => {
      try {
        await put(album);
        $("ask").close();
      } catch (error) {
        $("ask-error").textContent = explain(error);
        $("ask-error").hidden = false;
      }
    },
  }, el("span", {}, album.name), el("small", {}, count(album.total, "photo")))));
  const fresh = el("button", { type: "button", className: "new", onclick: () => { $("ask").close(); create(put); } }, "New album");
  dialogue({ title: `Add ${count(ids.length, "photo")} to`, body: [el("ul", { className: "choices" }, ...choices), fresh], explain });
}

export const link = (album) => address("/", { album: album.id });
