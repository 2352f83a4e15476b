// Calls to the gateway's documented API, on the page's own origin. The browser adds the login's cookie by itself.

/** An answer that is no success: an RFC 9457 problem, or the want of any answer (`status` 0). */
export class Refusal extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.reason = problem.reason;
    this.retryAfter = retryAfter;
  }

  /** Whether the same call may succeed in a moment. */
  get passes() {
    return [0, 408, 425, 429, 502, 503, 504].includes(this.status);
  }
}

async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  return new Refusal(response.status, problem, Number(response.headers.get("retry-after")) || undefined);
}

/** Sends a request; the response of a success. */
export async function send(method, path, { body, headers, signal } = {}) {
  const init = { method, signal, headers: { ...headers }, cache: "no-store", redirect: "error" };
  if (method === "POST") {
    init.headers["content-type"] = "application/json";
    init.body = JSON.stringify(body ?? {});
  }
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, { detail: "The gateway cannot be reached." });
  }
  if (response.status === 401) window.dispatchEvent(new Event("loggedout"));
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Sends a request; the JSON of a success. */
export async function call(method, path, options) {
  const response = await send(method, path, options);
  return response.status === 204 ? null : response.json();
}

/** A path with its parts, each of which is a segment, and a query without what is absent. */
export function path(segments, query = {}) {
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => value != null && value !== ""));
  const base = `/${segments.map(encodeURIComponent).join("/")}`;
  return search.size ? `${base}?${search}` : base;
}

/** A new random identifier. `crypto.randomUUID` is there over TLS and on loopback alone. */
export function identifier() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Resolves after so many milliseconds, or at once when the signal says that nobody waits any more. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

/** The pause before the `n`th repetition, in milliseconds: ever longer, up to eight seconds, and never all at the same time. */
export function backoff(n) {
  return Math.min(8000, 300 * 2 ** n) * (0.6 + 0.4 * Math.random());
}
