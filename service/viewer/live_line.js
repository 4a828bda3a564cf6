// The WebSocket of a job; reconnects after the last event received, without gaps or duplicates.

import { liveUrl, readJson } from "./api.js";
import { unpackPreviews } from "./frames.js";

const TERMINAL = new Set(["job.succeeded", "job.failed", "job.canceled", "job.expired"]);
const LONGEST_DELAY_MS = 8000;
// Without a message for so long, the connection may be lost without a close event: it is replaced.
const TIMEOUT_MS = 45000;

export class LiveLine {
  constructor(jobId, { onUpdate, onPreviews, onConnection }) {
    this.jobId = jobId;
    this.onUpdate = onUpdate;
    this.onPreviews = onPreviews;
    this.onConnection = onConnection;
    this.after = "";
    this.failures = 0;
    this.open();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    clearTimeout(this.timeout);
    this.socket?.close();
  }

  open() {
    const socket = new WebSocket(liveUrl(this.jobId, this.after));
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.resetTimeout();
    socket.onmessage = ({ data }) => {
      if (this.closed || socket !== this.socket) return;
      this.failures = 0;
      this.onConnection(true);
      this.resetTimeout();
      if (typeof data === "string") this.take(readJson(data));
      else this.onPreviews(unpackPreviews(data));
    };
    socket.onclose = () => {
      if (!this.closed && socket === this.socket) this.retry();
    };
  }

  take(update) {
    // A snapshot does not move the position: the event with its `seq` follows it.
    if (update.type !== "snapshot") this.after = update.seq;
    const last = TERMINAL.has(update.type);
    if (last) this.close();
    this.onUpdate(update);
  }

  resetTimeout() {
    clearTimeout(this.timeout);
    this.timeout = setTimeout(() => this.socket.close(), TIMEOUT_MS);
  }

  retry() {
    clearTimeout(this.timeout);
    this.failures += 1;
    this.onConnection(false, this.failures);
    const delay = Math.min(250 * 2 ** (this.failures - 1), LONGEST_DELAY_MS);
    this.timer = setTimeout(() => this.open(), delay * (0.75 + Math.random() / 2));
  }
}
