/** Where a question is written: its text, its pictures, and the editing of the last one. */

import { openCamera } from "./camera.js";
import { byId, make, say } from "./elements.js";
import { PictureError, readPicture } from "./pictures.js";

const MOST_LINES = 8;
const EMPTY = { text: "", pictures: [], truth: null };

const field = byId("question");
let pictures = [];
/** The example that stands in the composer: its answer is the truth only of its own question. */
let example = null;
/** What was being written when the editing of the last question began. */
let setAside = null;
let reading = Promise.resolve();

/** Whether the last question is being edited. */
export const isEditing = () => setAside !== null;

/** Whether there is nothing to send. */
export const isEmpty = () => field.value.trim() === "" && pictures.length === 0;

/** @returns {Promise<import("./dialogue.js").Question>} when all pictures have been read. */
export async function question() {
  await reading;
  return current();
}

function current() {
  const text = field.value.trim();
  const isExample = example !== null && example.text === text && example.pictures === pictures;
  return { text, pictures, truth: isExample ? example.truth : null };
}

/** Puts a question into the composer, in the place of what is there. */
export function put(asked) {
  field.value = asked.text;
  pictures = asked.pictures;
  example = asked.truth === null ? null : asked;
  tell("");
  fit();
  drawThumbnails();
}

/** Empties the composer after sending: what was set aside comes back. */
export function finish() {
  put(setAside ?? EMPTY);
  setAside = null;
  byId("editing").hidden = true;
}

/** Puts the last question into the composer, to be sent in its own place. */
export function edit(asked) {
  setAside ??= current();
  put(asked);
  byId("editing").hidden = false;
  field.focus();
  say("Editing the last question.");
}

/** Shows what is wrong with what was given; "" takes it away. */
export function tell(text) {
  byId("notice").textContent = text;
}

/** Adds files as pictures, in their order; tells of each that is none. */
export function addFiles(files) {
  const all = [...files];
  const done = reading.then(async () => {
    tell("");
    const troubles = [];
    for (const file of all) {
      try {
        add(await readPicture(file, file.name || "the picture"));
      } catch (error) {
        if (!(error instanceof PictureError)) throw error;
        troubles.push(error.message);
      }
    }
    if (troubles.length > 0) tell(troubles.join(" "));
  });
  reading = done.catch(() => {});
  return done;
}

function add(picture) {
  pictures = [...pictures, picture];
  drawThumbnails();
  say(`Picture ${pictures.length} added.`);
}

function remove(index) {
  pictures = pictures.filter((_, place) => place !== index);
  drawThumbnails();
  say("Picture removed.");
  const buttons = byId("thumbnails").querySelectorAll("button");
  (buttons[Math.min(index, buttons.length - 1)] ?? field).focus();
}

function drawThumbnails() {
  byId("thumbnails").replaceChildren(...pictures.map(({ url, name }, index) => make("li", {},
    make("img", { src: url, alt: `Picture ${index + 1}: ${name}` }),
    make("button", {
      type: "button", className: "remove", "aria-label": `Remove picture ${index + 1}`,
      title: "Remove", click: () => remove(index),
    }, "×"))));
}

function fit() {
  field.rows = 1;
  while (field.rows < MOST_LINES && field.scrollHeight > field.clientHeight) field.rows += 1;
}

/** Listens to everything that brings pictures and text. */
export function startComposer() {
  field.addEventListener("input", fit);
  byId("cancel-edit").addEventListener("click", () => {
    finish();
    field.focus();
  });
  for (const input of [byId("files"), byId("capture")]) {
    input.addEventListener("change", async () => {
      await addFiles(input.files);
      // So that the same file can be chosen again.
      input.value = "";
      field.focus();
    });
  }
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("open-camera").addEventListener("click", () => openCamera(add, tell));
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length === 0) return;
    event.preventDefault();
    addFiles(event.clipboardData.files);
  });
  startDropping();
}

function startDropping() {
  const hover = (isOver) => document.body.classList.toggle("dropping", isOver);
  document.addEventListener("dragover", (event) => {
    // Otherwise the browser leaves the page for a file that falls beside the composer.
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    hover(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && hover(false));
  document.addEventListener("drop", (event) => {
    hover(false);
    if (event.dataTransfer.files.length === 0) return;
    event.preventDefault();
    addFiles(event.dataTransfer.files);
    field.focus();
  });
}
