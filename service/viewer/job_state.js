// A job as the page shows it: the record, and what its events add (api_schemas/job.py folds the same).

const SPANS = { denoise: [0, 0.88], decode: [0.88, 0.99], store: [0.99, 1] };

export class JobState {
  constructor(job) {
    this.id = job.id;
    this.fraction = 0;
    this.step = 0;
    this.tiles = 0;
    this.furthest = 0;
    this.skewS = Infinity;
    this.catchUp(job);
  }

  get isOver() {
    return ["succeeded", "failed", "canceled", "expired"].includes(this.status);
  }

  // Seconds left now, counted down from the latest estimate.
  secondsLeft(nowMs) {
    return this.endsAtMs === null ? null : Math.max(0, (this.endsAtMs - nowMs) / 1000);
  }

  catchUp(job) {
    this.status = job.status;
    this.request = job.request;
    this.children = job.children ?? this.children;
    this.tilesExpected = job.cost.tiles;
    this.steps = job.cost.steps || job.request.steps;
    this.createdAt = job.created_at;
    this.startedAt = job.started_at;
    this.finishedAt = job.finished_at;
    this.result = job.result;
    this.error = job.error;
    this.urls = job.urls ?? this.urls;
    this.queuePosition = job.queue_position ?? null;
    this.phase = null;
    this.level = this.levels = 1;
    this.canvas = null;
    this.endsAtMs = null;
    // A first estimate, until a step reports a better one.
    if (typeof job.eta_s === "number") this.expectEnd(job.eta_s);
    if (job.progress) {
      this.level = job.progress.level;
      this.levels = job.progress.levels;
      this.enter(job.progress.phase, job.progress.done, job.progress.total);
      this.step = job.progress.phase === "denoise" ? job.progress.done : this.steps;
      if (typeof job.progress.eta_s === "number") this.expectEnd(job.progress.eta_s);
    }
    // Until events report exact numbers.
    this.furthest = this.step;
    this.tiles = Math.max(this.tiles, Math.round((job.cost.tiles * this.step) / Math.max(this.steps, 1)));
  }

  note({ type, data, ts }) {
    // This clock against the server's: events arrive late, never early, so the least delay is nearest.
    if (ts) this.skewS = Math.min(this.skewS, Date.now() / 1000 - ts);
    switch (type) {
      case "snapshot":
        return this.catchUp(data);
      case "job.queued":
        // The log is replayed from its beginning.
        this.tiles = this.step = this.furthest = 0;
        this.warning = null;
        break;
      case "job.warned":
        this.warning = data.message;
        break;
      case "job.started":
      case "job.resumed":
        this.status = "processing";
        this.startedAt ??= ts;
        this.delay = null;
        break;
      case "job.delayed":
        this.delay = data.reason;
        break;
      case "job.preempted":
        this.status = "queued";
        this.endsAtMs = null;
        break;
      case "phase.started":
        this.delay = null;
        this.level = data.level;
        this.levels = data.levels;
        this.canvas = data.width_px ? [data.width_px, data.height_px] : null;
        this.enter(data.phase, data.done, data.total);
        break;
      case "step.completed":
        if (data.step > this.furthest) {
          this.tiles += data.tiles; // a resumed job repeats some steps
          this.furthest = data.step;
        }
        this.step = data.step;
        this.steps = data.steps;
        this.tilesExpected = Math.max(this.tilesExpected, this.tiles);
        this.enter("denoise", data.step, data.steps);
        this.expectEnd(data.eta_s, ts + this.skewS);
        break;
      case "band.finished":
        this.enter("decode", data.bands_done, data.bands);
        this.expectEnd(data.eta_s, ts + this.skewS);
        break;
      case "job.succeeded":
        this.end("succeeded", ts);
        this.result = data.result;
        this.fraction = 1;
        break;
      case "job.failed":
        this.end("failed", ts);
        this.error = data.error;
        break;
      case "job.canceled":
        this.end("canceled", ts);
        break;
      case "job.expired":
        this.end("expired", ts);
        this.error = data.error;
        break;
    }
  }

  enter(phase, done, total) {
    const [begin, end] = SPANS[phase];
    this.phase = phase;
    this.done = done;
    this.total = total;
    this.fraction = Math.max(this.fraction, begin + ((end - begin) * done) / Math.max(total, 1));
  }

  expectEnd(seconds, fromS = Date.now() / 1000) {
    this.endsAtMs = typeof seconds === "number" ? (fromS + seconds) * 1000 : null;
  }

  end(status, ts) {
    this.status = status;
    this.finishedAt = ts;
    this.endsAtMs = null;
  }
}
