// Recent jobs, newest first.

import { fetchJobs, tileUrl } from "./api.js";
import * as words from "./words.js";

const SHOWN = 12;
const THUMB_LEVEL = 7; // 128 px; the last level of a smaller picture is its own size

export class RecentList {
  constructor(list, empty, onChoose) {
    this.list = list;
    this.empty = empty;
    this.onChoose = onChoose;
    this.current = null;
    this.drawn = null; // an empty list is drawn too
  }

  async refresh() {
    try {
      this.draw((await fetchJobs(SHOWN)).data);
    } catch {
      // The list stays as it is until the next refresh.
    }
  }

  mark(jobId) {
    this.current = jobId;
    for (const link of this.list.querySelectorAll("a")) {
      if (link.dataset.job === jobId) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  draw(jobs) {
    const now = Date.now() / 1000;
    const lines = jobs.map((job) => [job.id, job.status, words.ago(now - job.created_at)].join());
    // Redrawing would take the focus from a line.
    if (lines.join() === this.drawn) return;
    this.drawn = lines.join();
    const focused = document.activeElement?.dataset?.job;
    this.list.replaceChildren(...jobs.map((job) => this.line(job, now)));
    this.list.querySelector(`a[data-job="${focused}"]`)?.focus();
    this.empty.hidden = jobs.length > 0;
    this.mark(this.current);
  }

  line(job, now) {
    const link = document.createElement("a");
    link.href = `?job=${encodeURIComponent(job.id)}`;
    link.dataset.job = job.id;
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.onChoose(job.id);
    });
    link.append(thumb(job), summary(job, now));
    const item = document.createElement("li");
    item.append(link);
    return item;
  }
}

function thumb(job) {
  if (!job.result) return Object.assign(document.createElement("div"), { className: "thumb" });
  const image = new Image(96, 96);
  image.className = "thumb";
  image.alt = "";
  image.loading = "lazy";
  const lastLevel = Math.ceil(Math.log2(Math.max(job.result.width_px, job.result.height_px)));
  image.src = tileUrl(job.id, Math.min(THUMB_LEVEL, lastLevel), 0, 0);
  return image;
}

function summary(job, now) {
  const place = document.createElement("div");
  const prompt = document.createElement("b");
  prompt.textContent = job.request.prompt || "No prompt";
  const facts = document.createElement("small");
  const { width_px, height_px } = job.request;
  const parts = [words.short[job.status], words.size(width_px, height_px), words.ago(now - job.created_at)];
  facts.textContent = parts.filter(Boolean).join(" · ");
  place.append(prompt, facts);
  return place;
}
