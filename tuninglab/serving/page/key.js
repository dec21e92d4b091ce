/** The key of the server: asked for when it is wanted, kept until the tab is closed. */

import { byId } from "./elements.js";

const NAME = "tuninglab.key";
let asking = null;

/** The key that was given in this tab, or null. */
export const currentKey = () => sessionStorage.getItem(NAME);

/**
 * Another key than the one that was refused; asked for once, however many requests want it.
 * @param {string|null} refused
 * @returns {Promise<boolean>} whether there is one.
 */
export async function newKey(refused) {
  if (currentKey() !== refused) return true;
  asking ??= askFor(refused !== null).finally(() => (asking = null));
  return asking;
}

function askFor(again) {
  const dialog = byId("key");
  const field = byId("key-value");
  field.value = "";
  byId("key-notice").textContent = again ? "The server did not accept that key." : "";
  return new Promise((resolve) => {
    let given = false;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(NAME, field.value.trim());
      given = true;
      dialog.close();
    };
    byId("cancel-key").onclick = () => dialog.close();
    // Esc closes it, too.
    dialog.onclose = () => resolve(given);
    dialog.showModal();
  });
}
