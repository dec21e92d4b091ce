/** Draws a dialogue: questions, and below each the answers of the models side by side. */

import { isOpen } from "./dialogue.js";
import { byId, make, say } from "./elements.js";

/**
 * @typedef {{id: string, title: string}} Column a model and what stands above its answers.
 * @typedef {{retry: (model: string) => void, edit: () => void}} Actions
 */

/** The element of each answer, and how it is brought up to date. */
const shown = new WeakMap();

/**
 * Draws everything anew.
 * @param {import("./dialogue.js").Dialogue} dialogue
 * @param {Column[]} columns
 * @param {Actions} actions of the last turn.
 */
export function draw(dialogue, columns, actions) {
  const turns = dialogue.turns.map((turn, index) => {
    const isLast = turn === dialogue.last && !dialogue.busy;
    return drawTurn(turn, index + 1, columns, isLast ? actions : null);
  });
  byId("transcript").replaceChildren(...turns);
}

/** Shows what has changed in an answer. */
export function update(answer) {
  shown.get(answer)?.();
}

function drawTurn(turn, number, columns, actions) {
  const { text, pictures } = turn.question;
  const asked = make("div", { className: "asked" },
    pictures.length > 0 && make("div", { className: "pictures" },
      ...pictures.map((picture, index) => make("img", {
        src: picture.url, alt: `Picture ${index + 1} of question ${number}: ${picture.name}`,
      }))),
    text && make("p", { className: "text", dir: "auto" }, text),
    actions && make("button", {
      type: "button", className: "quiet", click: actions.edit, "aria-label": "Edit the question",
    }, "Edit"));
  const answers = make("div", { className: columns.length > 1 ? "answers two" : "answers" },
    ...columns.map((column) => drawAnswer(turn, column, actions)));
  return make("article", { className: "turn", "aria-label": `Question ${number}` },
    make("h2", { className: "unseen" }, `Question ${number}`), asked, answers,
    drawTruth(turn, columns));
}

/** What the data says; shown when all that are asked have answered, so that nobody is led. */
function drawTruth(turn, columns) {
  const answers = columns.map(({ id }) => turn.answers.get(id)).filter((answer) => answer?.text);
  const isTold = turn.question.truth !== null && answers.length > 0 && !answers.some(isOpen);
  return isTold && make("p", { className: "truth" }, "True answer: ",
    make("bdi", {}, turn.question.truth));
}

function drawAnswer(turn, { id, title }, actions) {
  const answer = turn.answers.get(id);
  const heading = make("h3", {}, make("bdi", {}, title));
  const retry = actions && make("button", {
    type: "button", className: "quiet", click: () => actions.retry(id),
    "aria-label": `${answer ? "Retry" : "Ask"}: ${title}`,
  }, answer ? "Retry" : "Ask");
  if (!answer) {
    return make("section", { className: "answer", "aria-label": title }, heading,
      make("p", { className: "note" }, "Was not asked this."),
      make("div", { className: "below" }, make("span", { className: "uses" }, retry)));
  }
  const text = make("p", { className: "text", dir: "auto" });
  const note = make("p", { className: "note" });
  const figures = make("span", {
    className: "figures", title: "Tokens a second are from the sending to the end.",
  });
  const copy = make("button", {
    type: "button", className: "quiet", "aria-label": `Copy: ${title}`,
    click: (event) => copyText(answer.text, event.currentTarget),
  }, "Copy");
  const section = make("section", { "aria-label": title }, heading, text, note,
    make("div", { className: "below" }, figures,
      make("span", { className: "uses" }, copy, retry)));
  shown.set(answer, () => {
    section.className = `answer ${answer.state}`;
    section.setAttribute("aria-busy", String(isOpen(answer)));
    text.textContent = answer.text;
    note.textContent = answer.note;
    note.classList.toggle("wrong", answer.state === "failed");
    figures.textContent = figuresOf(answer);
    copy.hidden = isOpen(answer) || !answer.text;
  });
  update(answer);
  return section;
}

function figuresOf({ tokens, firstS, totalS }) {
  const parts = [];
  if (tokens !== null) parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (tokens !== null && totalS > 0) parts.push(`${rounded(tokens / totalS)} tokens/s`);
  if (firstS !== null) parts.push(`first after ${firstS.toFixed(2)} s`);
  return parts.join(" · ");
}

const rounded = (number) => number.toFixed(number < 10 ? 1 : 0);

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard is only there on this machine and over https.
    const field = make("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = "Copied";
  say("Copied.");
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
