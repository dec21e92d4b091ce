/** The server's API: models, examples, and answers while they are written. */

import { currentKey, newKey } from "./key.js";

const UNREACHABLE = "The server does not answer. Is it still running?";
const INTERRUPTED = "The connection ended before the answer did; this is what had come.";

/** What went wrong, in words that may be shown. */
export class ApiError extends Error {
  /** @param {{status?: number, retryAfterS?: number|null}} facts of the reply */
  constructor(message, { status = 0, retryAfterS = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** The error that a reply tells: OpenAI's JSON, else its status. */
async function errorOf(reply) {
  const told = await reply.json().catch(() => null);
  const message = told?.error?.message;
  const wait = Number.parseInt(reply.headers.get("Retry-After") ?? "", 10);
  return new ApiError(
    typeof message === "string" ? message : `The server answered with status ${reply.status}.`,
    { status: reply.status, retryAfterS: Number.isFinite(wait) ? Math.max(1, wait) : null },
  );
}

/**
 * A reply of the server, with the key where it wants one.
 * @throws {ApiError} on any other status than 2xx, and where there is no server.
 */
async function call(path, options = {}) {
  for (;;) {
    const key = currentKey();
    const bearer = key ? { Authorization: `Bearer ${key}` } : {};
    let reply;
    try {
      reply = await fetch(path, { ...options, headers: { ...options.headers, ...bearer } });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ApiError(UNREACHABLE);
    }
    if (reply.ok) return reply;
    const error = await errorOf(reply);
    if (reply.status !== 401 || !(await newKey(key))) throw error;
    options.signal?.throwIfAborted();
  }
}

/** @returns {Promise<{id: string, parent: string|null}[]>} what is served. */
export async function models() {
  return (await (await call("v1/models")).json()).data;
}

/** @returns {Promise<{question: string, answer: string, picture: string|null}[]>} */
export async function examples() {
  return (await (await call("examples")).json()).examples;
}

/** @returns {Promise<Blob>} the picture of an example. */
export async function examplePicture(path) {
  return (await call(path)).blob();
}

/** The `data:` values of a stream of events; comments are passed over. */
async function* dataOf(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice("data:".length).trim();
    }
  }
}

/**
 * An answer bit by bit.
 * @yields {object} chunks of `chat.completion.chunk`.
 * @throws {ApiError} also where the stream ends too early, or tells an error.
 */
export async function* chunks(body, signal) {
  const reply = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const data of dataOf(reply)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message ?? INTERRUPTED);
      yield chunk;
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError(INTERRUPTED);
  }
  throw new ApiError(INTERRUPTED);
}
