/** The calls that the dashboard makes, and how they fail. */

export const LIVE = "queued,streaming";
const LARGEST_PAGE = 1000;

/** The node refused, or could not be reached (status 0); the message is a sentence for the reader. */
export class NodeError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * A stretch of the list, `{generations, next, feed_cursor}`: at most `limit`, and, where there are so many, `least`.
 *
 * One answer of the node may hold fewer, or none, although there are more.
 */
export async function listGenerations({ status, text, before, limit, least = 1 }) {
  const query = new URLSearchParams({ limit });
  for (const [name, value] of Object.entries({ status, q: text, before })) if (value) query.set(name, value);
  const page = await (await call(`/generations?${query}`)).json();
  const found = page.generations.length;
  if (page.next === null || found >= least) return page;
  const rest = await listGenerations({ status, text, before: page.next, limit: limit - found, least: least - found });
  return { ...page, generations: [...page.generations, ...rest.generations], next: rest.next };
}

export async function getGeneration(id) {
  return (await call(pathOf(id))).json();
}

export async function startGeneration(body) {
  const headers = { "Content-Type": "application/json" };
  return (await call("/generations", { method: "POST", headers, body: JSON.stringify(body) })).json();
}

export async function cancelGeneration(id) {
  return (await call(`${pathOf(id)}/cancel`, { method: "POST" })).json();
}

/** The names of the models that can be asked for. */
export async function listModels() {
  const { data } = await (await call("/v1/models")).json();
  return data.map((model) => model.id);
}

/** The transcript in one of its media types, as a file. */
export async function getTranscript(id, type) {
  return (await call(`${pathOf(id)}/transcript`, { headers: { Accept: type } })).blob();
}

/** A page of recorded events: `{events, next, complete}`. */
export async function listEvents(id, after) {
  const headers = { Accept: "application/json" };
  return (await call(`${pathOf(id)}/events?limit=${LARGEST_PAGE}&after=${after}`, { headers })).json();
}

export function pathOf(id) {
  return `/generations/${encodeURIComponent(id)}`;
}

async function call(path, options) {
  const response = await fetch(path, options).catch(() => {
    throw new NodeError(0, "The node cannot be reached.");
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const reason = problem.detail ?? problem.error?.message ?? response.statusText;
  throw new NodeError(response.status, `The node answered ${response.status}: ${reason}`);
}
