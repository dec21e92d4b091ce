/** The settings of answers, and what is shown: remembered by the browser. */

import { byId } from "./elements.js";

const NAME = "tuninglab.settings";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const FIELDS = [...NUMBERS, "system"];
let kept = {};

/** What is remembered under a name of the page: a string, or "" if there is nothing. */
export const remembered = (name) => (typeof kept[name] === "string" ? kept[name] : "");

/** Remembers a text until it is remembered anew. */
export function remember(name, text) {
  kept[name] = text;
  try {
    localStorage.setItem(NAME, JSON.stringify(kept));
  } catch {
    // A browser that keeps nothing still has them until the page is left.
  }
}

/** The parameters of a request that are set, and only these. */
export function parameters() {
  const set = NUMBERS.filter((name) => remembered(name) !== "");
  return Object.fromEntries(set.map((name) => [name, Number(remembered(name))]));
}

/** The system message, "" if there is none. */
export const systemMessage = () => remembered("system").trim();

/** Fills the dialog with what is remembered, and keeps what is changed in it. */
export function startSettings() {
  try {
    const read = JSON.parse(localStorage.getItem(NAME) ?? "{}");
    if (read !== null && typeof read === "object") kept = read;
  } catch {
    // What an extension or another page of this address has left is not ours.
  }
  for (const name of FIELDS) {
    byId(name).value = remembered(name);
    // A number field that cannot take what is remembered is empty: then nothing is set.
    if (byId(name).value !== remembered(name) || !byId(name).checkValidity()) {
      byId(name).value = kept[name] = "";
    }
    // Not "change": what is no number leaves a number field as empty as it was.
    byId(name).addEventListener("blur", () => keep(byId(name)));
  }
  byId("open-settings").addEventListener("click", () => byId("settings").showModal());
  byId("close-settings").addEventListener("click", () => byId("settings").close());
  byId("reset-settings").addEventListener("click", empty);
}

function keep(field) {
  const fine = field.checkValidity();
  field.setAttribute("aria-invalid", String(!fine));
  const wrong = FIELDS.map(byId).find((other) => !other.validity.valid);
  const label = wrong?.labels[0].firstChild.textContent.trim();
  byId("settings-notice").textContent = wrong
    ? `${label}: ${wrong.validationMessage} What was set before is used.`
    : "";
  if (fine) remember(field.id, field.value);
}

function empty() {
  for (const name of FIELDS) {
    byId(name).value = "";
    keep(byId(name));
  }
}
