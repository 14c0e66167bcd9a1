// Elements without markup: what comes from a file or a user is only ever text.

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const button = (text, onclick, className = "") => el("button", { type: "button", className, onclick }, text);

// Something that has happened, with at most one thing to do about it; gone after `seconds`, but not while it has the focus.
export function toast(text, { action, onaction, seconds = 6 } = {}) {
  const item = el("div", { className: "toast" }, el("span", {}, text));
  const remove = () => item.remove();
  if (action) item.append(button(action, () => { remove(); onaction(); }));
  item.append(el("button", { type: "button", className: "close", "aria-label": "Dismiss", onclick: remove }));
  $("toasts").append(item);
  let left = seconds * 10;
  const clock = setInterval(() => {
    if (!item.isConnected) clearInterval(clock);
    else if (!item.matches(":hover, :focus-within") && --left <= 0) remove();
  }, 100);
  return item;
}

// A dialogue that asks for something. `answer` gets what `read` returns; the dialogue stays open with the error if it fails.
export function dialogue({ title, body, ok, danger = false, answer, explain }) {
  const box = $("ask");
  $("ask-title").textContent = title;
  $("ask-body").replaceChildren(...body);
  $("ask-ok").textContent = ok ?? "";
  $("ask-ok").hidden = !ok;
  $("ask-ok").classList.toggle("danger", danger);
  $("ask-error").hidden = true;
  $("ask-form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await answer();
      box.close();
    } catch (error) {
      $("ask-error").textContent = explain(error);
      $("ask-error").hidden = false;
    }
  };
  box.showModal();
  return box;
}
