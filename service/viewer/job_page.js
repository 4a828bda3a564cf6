// Shows one job, from its first event to its deep zoom.

import { cancelJob, fetchJob } from "./api.js";
import { JobState } from "./job_state.js";
import { LiveCanvas } from "./live_canvas.js";
import { LiveLine } from "./live_line.js";
import * as words from "./words.js";

const TICK_MS = 500;
const QUEUE_LOOK_MS = 2000;

export class JobPage {
  constructor(record, { view, caption, tools, tilePx, onEnd, onDraw, onShown }) {
    this.view = view;
    this.caption = caption;
    this.tools = tools;
    this.onEnd = onEnd;
    this.onDraw = onDraw;
    this.onShown = onShown;
    this.job = new JobState(record);
    this.canvas = new LiveCanvas(record.request, tilePx);
    this.redraw = this.redraw.bind(this);
  }

  async show() {
    this.redraw();
    await this.view.open(this.job.request.width_px, this.job.request.height_px);
    if (this.closed) return;
    if (this.job.status === "succeeded") return this.showResult();
    this.view.showLive(this.canvas);
    // Also after a failure or a cancellation: the previews are still stored for a while.
    this.line = new LiveLine(this.job.id, {
      onUpdate: (update) => this.take(update),
      onPreviews: (previews) => this.canvas.paint(previews),
      onConnection: (well, failures) => this.showConnection(well, failures),
    });
    this.tick = setInterval(() => this.caption.drawTime(this.job), TICK_MS);
    this.lookAtQueue();
  }

  close() {
    this.closed = true;
    this.line?.close();
    clearInterval(this.tick);
    clearTimeout(this.queueLook);
    cancelAnimationFrame(this.frame);
    this.tools.setSeamless("none");
  }

  async cancel() {
    try {
      const record = await cancelJob(this.job.id);
      if (record.status === "processing") this.caption.setState("Stopping after this step");
    } catch (refusal) {
      this.caption.showFailure(refusal.message);
    }
  }

  take(update) {
    const wasOver = this.job.isOver;
    this.job.note(update);
    this.frame ??= requestAnimationFrame(this.redraw);
    if (this.job.isOver && !wasOver) this.end();
  }

  async end() {
    clearInterval(this.tick);
    this.onEnd();
    if (this.job.status === "succeeded") await this.showResult();
    else this.view.setBusy(false);
  }

  async showResult() {
    try {
      // The record has the addresses; events don't.
      this.job.catchUp(await fetchJob(this.job.id));
      this.redraw();
      this.tools.setSeamless(this.job.request.seamless);
      await this.view.showResult(this.job.id);
      if (!this.closed) this.onShown(this.job);
    } catch (refusal) {
      this.view.setBusy(false);
      this.caption.showFailure(refusal.message);
    }
  }

  redraw() {
    this.frame = null;
    if (this.closed) return;
    this.caption.draw(this.job);
    this.onDraw(this.job);
  }

  showConnection(well, failures) {
    if (!well) this.verify(failures);
    if (well !== this.connected && !this.job.isOver) {
      this.connected = well;
      if (!well && failures > 1) this.caption.setState("Connection lost; reconnecting");
      else this.caption.setState(words.state(this.job));
    }
  }

  // If the server has no such job, do not reconnect. Where a proxy refuses WebSockets, its record is all there is.
  async verify(failures) {
    try {
      const record = await fetchJob(this.job.id);
      if (failures > 1 && !this.closed && !this.job.isOver) this.catchUp(record);
    } catch (refusal) {
      if (refusal.status !== 404) return;
      this.line.close();
      this.caption.showFailure(refusal.message);
    }
  }

  catchUp(record) {
    this.job.catchUp(record);
    this.redraw();
    if (!this.job.isOver) return;
    this.line.close();
    this.end();
  }

  // No event reports queue positions.
  async lookAtQueue() {
    if (this.closed || this.job.status !== "queued") return;
    try {
      const record = await fetchJob(this.job.id);
      if (this.job.status === "queued") {
        this.job.queuePosition = record.queue_position;
        this.job.expectEnd(record.eta_s);
        this.redraw();
      }
    } catch {
      // Connection problems are shown by the live connection.
    }
    this.queueLook = setTimeout(() => this.lookAtQueue(), QUEUE_LOOK_MS);
  }
}
