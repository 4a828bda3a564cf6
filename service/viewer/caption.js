// Below the picture: its settings, its progress, and buttons.

import { jobPath } from "./api.js";
import * as words from "./words.js";

const byId = (id) => document.getElementById(id);

export class Caption {
  constructor({ onCancel, onAgain }) {
    byId("cancel").addEventListener("click", onCancel);
    byId("again").addEventListener("click", onAgain);
    byId("share").addEventListener("click", () => copyAddress());
  }

  draw(job) {
    byId("caption").hidden = false;
    byId("title").textContent = job.request.prompt || "No prompt";
    byId("facts").textContent = words.facts(job);
    byId("cancel").hidden = job.isOver;
    const failure = words.failure(job);
    byId("progress").hidden = job.status === "succeeded" || failure !== "";
    byId("failure").hidden = failure === "";
    byId("failure").textContent = failure;
    byId("counts").textContent = words.counts(job);
    this.setState(words.state(job));
    this.drawTime(job);
    this.drawBar(job);
    this.drawDownload(job);
  }

  drawTime(job) {
    byId("left").textContent = job.isOver ? "" : words.left(job.secondsLeft(Date.now()));
  }

  setState(text) {
    const place = byId("state");
    if (place.textContent !== text) place.textContent = text; // screen readers announce each change
  }

  showFailure(text) {
    byId("failure").hidden = !text;
    byId("failure").textContent = text;
  }

  hide() {
    byId("caption").hidden = true;
  }

  drawBar(job) {
    const percent = Math.round(job.fraction * 100);
    byId("fill").style.transform = `scaleX(${job.fraction})`;
    byId("bar").setAttribute("aria-valuenow", percent);
    byId("bar").hidden = job.isOver;
    document.title = job.isOver ? `${job.request.prompt.slice(0, 60) || "Picture"} · Chorale` : `${percent} % · Chorale`;
  }

  drawDownload(job) {
    const link = byId("download");
    link.hidden = !job.result;
    if (!job.result) return;
    const ending = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/tiff": "tif" }[job.result.media_type];
    // Browsers ignore the download attribute if the store is another host; the picture then opens in a new tab.
    link.href = `${jobPath(job.id)}/image`;
    link.setAttribute("download", `chorale-${job.id}.${ending ?? "img"}`);
    link.textContent = `Download ${(ending ?? "picture").toUpperCase()}, ${words.bytes(job.result.size_bytes)}`;
  }
}

async function copyAddress() {
  const button = byId("share");
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    // Without a secure origin there is no clipboard; the address bar has the link too.
    button.textContent = "Use the address bar";
  }
  setTimeout(() => (button.textContent = "Copy link"), 2000);
}
