// A job's WebSocket, taken up again where it broke: no gap, nothing twice.

import { liveUrl, readJson } from "./api.js";
import { unpackPreviews } from "./frames.js";

const TERMINAL = new Set(["job.succeeded", "job.failed", "job.canceled"]);
const LONGEST_DELAY_MS = 8000;
// A line that says nothing for so long may be dead without a close: a new one costs little.
const SILENCE_MS = 45000;

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
    clearTimeout(this.silence);
    this.socket?.close();
  }

  open() {
    const socket = new WebSocket(liveUrl(this.jobId, this.after));
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.hear();
    socket.onmessage = ({ data }) => {
      if (this.closed || socket !== this.socket) return;
      this.failures = 0;
      this.onConnection(true);
      this.hear();
      if (typeof data === "string") this.take(readJson(data));
      else this.onPreviews(unpackPreviews(data));
    };
    socket.onclose = () => {
      if (!this.closed && socket === this.socket) this.retry();
    };
  }

  take(update) {
    // A snapshot moves nothing: the event that it stands before comes after it.
    if (update.type !== "snapshot") this.after = update.seq;
    const last = TERMINAL.has(update.type);
    if (last) this.close();
    this.onUpdate(update);
  }

  hear() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.socket.close(), SILENCE_MS);
  }

  retry() {
    clearTimeout(this.silence);
    this.failures += 1;
    this.onConnection(false, this.failures);
    const delay = Math.min(250 * 2 ** (this.failures - 1), LONGEST_DELAY_MS);
    this.timer = setTimeout(() => this.open(), delay * (0.75 + Math.random() / 2));
  }
}
