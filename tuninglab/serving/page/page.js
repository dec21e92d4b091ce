/** The page of `tuninglab serve`: brings composer, dialogue and settings together. */

import { ApiError, models } from "./api.js";
import * as composer from "./composer.js";
import { Dialogue } from "./dialogue.js";
import { byId, say } from "./elements.js";
import { startGallery } from "./gallery.js";
import { remember, remembered, startSettings } from "./settings.js";
import { draw, update } from "./transcript.js";

/** How far from its end a page may be scrolled and still follow what is written. */
const NEAR_END_PX = 80;

/** @type {{id: string, parent: string|null}[]} */
let served = [];
const dialogue = new Dialogue((answer) => following(() => update(answer)));

/** The models that are asked, and what stands above their answers. */
function columns() {
  const chosen = served.find(({ id }) => id === byId("model").value);
  if (!chosen) return [];
  if (!byId("beside").checked) return [{ id: chosen.id, title: chosen.id }];
  const base = chosen.parent ?? chosen.id;
  const tuned = chosen.parent ? chosen : served.find(({ parent }) => parent === base);
  const all = [{ id: base, title: `Base: ${base}` }];
  return tuned ? [...all, { id: tuned.id, title: `Tuned: ${tuned.id}` }] : all;
}

function redraw() {
  const isTwo = columns().length > 1;
  following(() => draw(dialogue, columns(), { retry, edit }));
  document.body.classList.toggle("wide", isTwo);
  byId("stop").hidden = !dialogue.busy;
  byId("send").hidden = dialogue.busy;
  byId("intro").hidden = dialogue.turns.length > 0;
}

/** Changes the page, and goes on to its end if the reader was there. */
function following(change) {
  const page = document.documentElement;
  const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_END_PX;
  change();
  if (isAtEnd) page.scrollTop = page.scrollHeight;
}

async function ask(turn, asked) {
  const pending = asked.map(async ({ id, title }) => {
    const answer = await dialogue.ask(turn, id);
    if (dialogue.turns.includes(turn)) say(`${title}: ${answer.text} ${answer.note}`);
  });
  redraw();
  await Promise.all(pending);
  redraw();
}

async function send() {
  if (dialogue.busy) {
    composer.tell("An answer is being written. Esc stops it.");
    return;
  }
  const question = await composer.question();
  // While pictures were read, Enter may have been pressed again.
  if (dialogue.busy || composer.isEmpty() || columns().length === 0) return;
  if (composer.isEditing()) dialogue.dropLast();
  composer.finish();
  byId("examples").open = false;
  await ask(dialogue.add(question), columns());
}

function retry(model) {
  byId("question").focus();
  ask(dialogue.last, columns().filter(({ id }) => id === model));
}

function edit() {
  if (dialogue.last && !dialogue.busy) composer.edit(dialogue.last.question);
}

function clear() {
  dialogue.clear();
  if (composer.isEditing()) composer.finish();
  redraw();
  say("The dialogue is empty.");
  byId("question").focus();
}

function onKey(event) {
  const isDialog = document.querySelector("dialog[open]") !== null;
  // What an input method composes is not yet text.
  if (isDialog || event.isComposing) return;
  const field = byId("question");
  const isField = event.target === field;
  const isTyping = event.target.matches("input, textarea, select");
  if (event.key === "Escape" && dialogue.busy) dialogue.stop();
  else if (event.key === "Escape" && composer.isEditing()) composer.finish();
  else if (event.key === "Enter" && isField && !event.shiftKey) send();
  else if (event.key === "ArrowUp" && isField && composer.isEmpty() && dialogue.last) edit();
  else if (event.key === "/" && !isTyping) field.focus();
  else return;
  event.preventDefault();
}

/** Fills the choice of models, with what was chosen before if it is there. */
function fillModels() {
  byId("model").replaceChildren(...served.map(({ id }) => new Option(id, id)));
  const tuned = served.find(({ parent }) => parent !== null) ?? served[0];
  const before = served.find(({ id }) => id === remembered("model")) ?? tuned;
  if (before) byId("model").value = before.id;
  byId("beside-label").hidden = !served.some(({ parent }) => parent !== null);
  byId("beside").checked = !byId("beside-label").hidden && remembered("beside") === "yes";
}

async function connect() {
  byId("trouble").hidden = true;
  try {
    served = await models();
    fillModels();
    redraw();
    await startGallery();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    byId("trouble-text").textContent = error.message;
    byId("trouble").hidden = false;
  }
}

function start() {
  startSettings();
  composer.startComposer();
  byId("model").addEventListener("change", () => {
    remember("model", byId("model").value);
    redraw();
  });
  byId("beside").addEventListener("change", () => {
    remember("beside", byId("beside").checked ? "yes" : "");
    redraw();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", () => dialogue.stop());
  byId("clear").addEventListener("click", clear);
  byId("connect").addEventListener("click", connect);
  document.addEventListener("keydown", onKey);
  byId("question").focus();
  redraw();
  connect();
}

start();
