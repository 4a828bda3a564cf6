// All requests to the server. Paths are relative: a proxy may serve all this below a path of its own.

import { askForKey, countSignIns } from "./sign_in.js";

// A refusal with its problem body (RFC 9457).
export class Refusal extends Error {
  constructor(problem) {
    super(problem.detail);
    this.status = problem.status;
    this.code = problem.code;
    this.errors = problem.errors ?? [];
    this.retryable = problem.retryable ?? false;
  }
}

export const jobPath = (id) => `v1/jobs/${encodeURIComponent(id)}`;

export const fetchJob = (id) => call(jobPath(id));
export const fetchJobs = (limit) => call(`v1/jobs?limit=${limit}`);
export const fetchModels = () => call("v1/models");
export const cancelJob = (id) => call(`${jobPath(id)}/cancel`, { method: "POST" });

// `pictures`: files by the names of their parts.
export function createJob(request, pictures = {}) {
  const json = new Blob([writeJson(request)], { type: "application/json" });
  const files = Object.entries(pictures).filter(([, file]) => file);
  return call("v1/jobs", { method: "POST", headers: { "Idempotency-Key": randomWord() }, body: files.length ? fillForm(json, files) : json });
}

function fillForm(request, files) {
  const form = new FormData();
  form.append("request", request);
  for (const [part, file] of files) form.append(part, file);
  return form;
}

// Of a finished job: reroll, extend or variations.
export function deriveJob(id, what, body) {
  return call(`${jobPath(id)}/${what}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": randomWord() },
    body: writeJson(body),
  });
}

export async function fetchPyramid(id) {
  const response = await reach(`${jobPath(id)}/image.dzi`);
  const image = new DOMParser().parseFromString(await response.text(), "application/xml").documentElement;
  const size = image.querySelector("Size");
  return {
    width: Number(size.getAttribute("Width")),
    height: Number(size.getAttribute("Height")),
    tileSize: Number(image.getAttribute("TileSize")),
    tileOverlap: Number(image.getAttribute("Overlap")),
  };
}

export const tileUrl = (id, level, column, row) => `${jobPath(id)}/tiles/${level}/${column}_${row}`;

export function liveUrl(id, after) {
  const url = new URL(`${jobPath(id)}/ws`, document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  if (after) url.searchParams.set("after", after);
  return url;
}

const SEED = "\0"; // begins no text: the server allows it nowhere

// Seeds go up to 2^63 - 1, which a JavaScript number cannot hold: they stay text on this side.
export function readJson(text) {
  return JSON.parse(text, (key, value, context) =>
    key === "seed" && typeof value === "number" ? (context?.source ?? String(value)) : value,
  );
}

function writeJson(request) {
  // Anything but a whole number is sent as text, for the server to reject.
  const mark = (key, value) => (key === "seed" && /^(0|[1-9]\d{0,30})$/.test(value) ? `${SEED}${value}` : value);
  return JSON.stringify(request, mark).replace(/"\\u0000(\d+)"/g, "$1");
}

async function call(path, options) {
  const response = await reach(path, options);
  return readJson(await response.text());
}

async function reach(path, options) {
  const since = countSignIns();
  const response = await ask(path, options);
  if (response.ok) return response;
  if (response.status === 401) {
    await askForKey(since);
    return reach(path, options);
  }
  const problem = await response.json().catch(() => ({ detail: `The server answered ${response.status}.` }));
  throw new Refusal({ status: response.status, ...problem });
}

async function ask(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new Refusal({ detail: "The server does not answer.", code: "unreachable", status: 0, retryable: true });
  }
}

function randomWord() {
  // crypto.randomUUID is there on secure origins only, and this page is often served to a home network.
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16)).join("-");
}
