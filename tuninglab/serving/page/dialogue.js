/** A dialogue: its turns, and for each model the answers and the history of its own. */

import { ApiError, chunks } from "./api.js";
import { parameters, systemMessage } from "./settings.js";

const TRIES = 4; // of a busy server, before the user is asked

/**
 * @typedef {{text: string, pictures: {url: string, name: string}[], truth: string|null}} Question
 * @typedef {{model: string, text: string, state: "waiting"|"writing"|"done"|"stopped"|"failed",
 *   note: string, tokens: number|null, firstS: number|null, totalS: number|null,
 *   stop: AbortController}} Answer
 * @typedef {{question: Question, answers: Map<string, Answer>}} Turn
 */

/** Whether an answer is still to come, or coming. */
export const isOpen = (answer) => answer.state === "waiting" || answer.state === "writing";

/** Questions in their order, each with the answers of the models that were asked. */
export class Dialogue {
  /** @type {Turn[]} */
  turns = [];

  /** @param {(answer: Answer) => void} onChange is called whenever an answer has changed. */
  constructor(onChange) {
    this.onChange = onChange;
  }

  /** @returns {Turn|undefined} */
  get last() {
    return this.turns.at(-1);
  }

  /** Whether an answer is to come. */
  get busy() {
    return this.turns.some((turn) => [...turn.answers.values()].some(isOpen));
  }

  /** Adds a turn; nobody is asked yet. */
  add(question) {
    this.turns.push({ question, answers: new Map() });
    return this.last;
  }

  /** Stops every answer; what has come stays. */
  stop() {
    for (const turn of this.turns) {
      for (const answer of turn.answers.values()) answer.stop.abort();
    }
  }

  /** Takes the last turn out. */
  dropLast() {
    this.stop();
    this.turns.pop();
  }

  /** Takes all turns out. */
  clear() {
    this.stop();
    this.turns = [];
  }

  /**
   * What a model is sent: the system message, the turns that it answered itself, the question.
   * Another model's answers are not its own: they would show it how to answer.
   */
  messages(model, turn) {
    const system = systemMessage();
    const sent = system ? [{ role: "system", content: system }] : [];
    for (const earlier of this.turns.slice(0, this.turns.indexOf(turn))) {
      const text = earlier.answers.get(model)?.text;
      if (text) sent.push(asMessage(earlier.question), { role: "assistant", content: text });
    }
    return [...sent, asMessage(turn.question)];
  }

  /**
   * Asks a model; an earlier answer of it to this question is replaced.
   * @returns {Promise<Answer>} when it has ended, however that was.
   */
  async ask(turn, model) {
    const answer = {
      model, text: "", state: "waiting", note: "", tokens: null, firstS: null, totalS: null,
      stop: new AbortController(),
    };
    const body = { model, messages: this.messages(model, turn), ...parameters() };
    turn.answers.set(model, answer);
    this.onChange(answer);
    try {
      await this.#untilFree(() => this.#write(answer, body), answer);
      answer.state = "done";
    } catch (error) {
      const stopped = answer.stop.signal.aborted;
      answer.state = stopped ? "stopped" : "failed";
      answer.note = stopped ? "Stopped." : wordsOf(error);
    }
    this.onChange(answer);
    return answer;
  }

  async #write(answer, body) {
    const start = performance.now();
    const secondsSince = () => (performance.now() - start) / 1000;
    for await (const chunk of chunks(body, answer.stop.signal)) {
      const choice = chunk.choices?.[0];
      const text = choice?.delta?.content;
      if (text) {
        answer.firstS ??= secondsSince();
        answer.state = "writing";
        answer.text += text;
      }
      if (choice?.finish_reason) answer.totalS = secondsSince();
      if (choice?.finish_reason === "length") answer.note = "Cut at the longest answer allowed.";
      if (chunk.usage) answer.tokens = chunk.usage.completion_tokens;
      this.onChange(answer);
    }
    if (!answer.text) answer.note ||= "The answer is empty.";
  }

  /** Tries again after the time that a busy server names. */
  async #untilFree(work, answer) {
    for (let tried = 1; ; tried += 1) {
      try {
        return await work();
      } catch (error) {
        const wait = error instanceof ApiError && error.status === 503 ? error.retryAfterS : null;
        if (wait === null || tried === TRIES) throw error;
        for (let left = wait; left > 0; left -= 1) {
          answer.note = `The server is busy. Trying again in ${left} s.`;
          this.onChange(answer);
          await second(answer.stop.signal);
        }
        answer.note = "";
      }
    }
  }
}

function asMessage({ text, pictures }) {
  const content = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  if (text) content.push({ type: "text", text });
  return { role: "user", content };
}

function wordsOf(error) {
  if (!(error instanceof ApiError)) console.error(error);
  if (error.status === 503) return `The server is busy. ${error.message}`;
  return error instanceof ApiError ? error.message : "Something went wrong in this page.";
}

/** One second, or less where it is stopped. */
function second(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
