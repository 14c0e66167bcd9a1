// Requests, and errors in plain words.

export async function ask(path, { method = "GET", json, body, signal } = {}) {
  const options = { method, signal, body };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers = { "Content-Type": "application/json" };
  } else if (body !== undefined) {
    options.headers = { "Content-Type": "application/octet-stream" };
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { down: true, error: "the server can't be reached", hint: "Check that it is running and that you are online." };
  }
  if (answer.ok) return answer.json();
  let said;
  try {
    said = await answer.json();
  } catch {
    said = { error: `the server answered ${answer.status}` };
  }
  throw { ...said, status: answer.status, down: answer.status >= 502 };
}

// A path with parameters: those without a value are left out, and any character may be in them.
export function address(path, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== null && value !== "") query.set(name, value);
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

// What an error of the database means to somebody who uploads a photo.
export function plain({ error, status, sqlstate, down }) {
  if (down) return status ? "The database can’t be reached" : "The server can’t be reached";
  if (status === 413) return "The file is too large";
  if (sqlstate === "0A000") return "This kind of file isn’t supported";
  if (sqlstate === "22023") return /truncat/i.test(error) ? "Part of the file is missing" : /empty/i.test(error) ? "The file is empty"
    : /not an image/i.test(error) ? "This isn’t a photo" : "The file is damaged";
  if (sqlstate === "54000") return "The photo is too large";
  if (sqlstate === "53200") return "The server ran out of memory";
  return sentence(error);
}

export const sentence = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);
const digits = new Intl.NumberFormat("en");
export const count = (n, one, many = `${one}s`) => `${digits.format(n)} ${n === 1 ? one : many}`;
export const figure = (n) => digits.format(n);

export function size(bytes) {
  const [unit, name] = bytes < 1e6 ? [1e3, "kB"] : [1e6, "MB"];
  return `${(bytes / unit).toLocaleString("en", { maximumSignificantDigits: 3 })} ${name}`;
}

// Dates are those of the camera's clock, which knows no time zone.
const at = (date) => new Date(`${date.slice(0, 19)}Z`);
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeZone: "UTC" });
const minute = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "short", timeZone: "UTC" });
const monthOf = new Intl.DateTimeFormat("en-GB", { month: "long", year: "numeric", timeZone: "UTC" });
export const onDay = (date) => day.format(at(date));
export const onMinute = (date) => minute.format(at(date));
export const inMonth = (month) => monthOf.format(at(`${month}-01T00:00:00`));
