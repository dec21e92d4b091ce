/** Elements of the page: found by their id, or made, with text that is never markup. */

/** The element of this id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {object} properties DOM properties; names with a hyphen are attributes, functions listen
 *   to the event of that name.
 * @param {...(Node|string|null|false)} children strings become text; null and false are left out.
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

/** Tells readers of the screen; the same text twice is told twice. */
export function say(text) {
  byId("said").replaceChildren(make("p", { dir: "auto" }, text));
}
