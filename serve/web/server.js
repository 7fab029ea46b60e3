// The server's HTTP interface. Every call may be repeated, so what fails for a passing reason is tried again.

const ROOT = new URL("..", import.meta.url); // where the page is, below whatever prefix a proxy shows it
const TRIES = 6;
const PASSING = [429, 502, 503, 504];

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Server {
  // askKey: told whether a key was refused, resolves to one that a person gives, or to null; onRetry: is told
  // that the server is away.
  constructor(askKey, onRetry) {
    this.askKey = askKey;
    this.onRetry = onRetry;
    this.key = sessionStorage.getItem("key");
  }

  async upload(file) {
    return this.call("v1/images", { body: file });
  }

  // Answers {mask, score, model, timing_ms, tokens, is_final} and the milliseconds that it took from here.
  // firstLook: whether the first look is enough, where the model takes a closer one too.
  async mask(imageId, object, firstLook = false) {
    const { clicks, box, prior } = object;
    const request = { clicks, box, prior: prior?.png ?? null, format: "png", tokens: true, first_look: firstLook };
    const headers = { "Content-Type": "application/json" };
    const start = performance.now();
    const reply = await this.call(`v1/images/${imageId}/mask`, { headers, body: JSON.stringify(request) });
    return { ...reply, milliseconds: performance.now() - start };
  }

  // Has the server keep a mask that a person accepts: {label, mask, clicks, box, model, score}.
  async accept(imageId, annotation) {
    const headers = { "Content-Type": "application/json" };
    return this.call(`v1/images/${imageId}/annotations`, { headers, body: JSON.stringify(annotation) });
  }

  async withdraw(imageId, annotationId) {
    return this.call(`v1/images/${imageId}/annotations/${annotationId}`, { method: "DELETE" });
  }

  // Adapts the model to all accepted masks, or tells how far that is: {state, name, lines}.
  async adapt(method) {
    return this.call("v1/adapt", { method });
  }

  async call(path, options) {
    for (let number = 0, mostDone = 0; ; number += 1) {
      const { key } = this;
      const response = await this.fetched(path, options);
      if (response?.status === 401 && (await this.login(key))) continue;
      if (response && response.status !== 401 && key) sessionStorage.setItem("key", key);
      if (response?.ok) return response.status === 204 ? null : response.json();
      const done = await clicksDone(response);
      if (done > mostDone) [number, mostDone] = [0, done]; // it goes on where it was
      const passing = !response || isPassing(response);
      if (!passing || number + 1 >= TRIES) throw await failure(response);
      this.onRetry();
      const asked = Number(response?.headers.get("Retry-After")) || 0;
      await pause(Math.max(asked, Math.min(4, 0.2 * 2 ** number) * (0.5 + Math.random() / 2)));
    }
  }

  async fetched(path, options) {
    const key = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    try {
      return await fetch(new URL(path, ROOT), { method: "POST", ...options, headers: { ...options.headers, ...key } });
    } catch {
      return null; // no connection
    }
  }

  // Calls that are refused at the same time share one question.
  async login(refused) {
    if (this.key !== refused) return true; // another call was given a newer key meanwhile
    sessionStorage.removeItem("key");
    this.asking ??= this.askKey(Boolean(refused)).finally(() => (this.asking = null));
    this.key = await this.asking;
    return Boolean(this.key);
  }
}

// Of a request with more clicks than the server does in one go; it keeps what is done.
async function clicksDone(response) {
  if (response?.status !== 503) return 0;
  const body = await response.clone().json().catch(() => ({}));
  return body.clicks_done ?? 0;
}

// 500 that is no JSON is not the server's own: it comes from a proxy whose server died.
function isPassing(response) {
  const isOwn = response.headers.get("Content-Type")?.startsWith("application/json");
  return PASSING.includes(response.status) || (response.status === 500 && !isOwn);
}

async function failure(response) {
  if (!response) return new ServerError(0, "the server cannot be reached");
  const body = await response.json().catch(() => ({}));
  const detail = Array.isArray(body.detail) ? body.detail.map((each) => each.msg).join("; ") : body.detail;
  return new ServerError(response.status, detail || `the server answered ${response.status}`);
}
