// Numbers and job states as text.

const whole = new Intl.NumberFormat("en");
const SEAMLESS = { none: "", x: "seamless across", y: "seamless down", both: "seamless both ways" };

export const count = (value) => whole.format(value);
export const size = (width, height) => `${width} × ${height}`;

export function facts({ request, status, startedAt, finishedAt }) {
  const took = status === "succeeded" && startedAt ? `generated in ${duration(finishedAt - startedAt)}` : "";
  const parts = [
    size(request.width_px, request.height_px),
    SEAMLESS[request.seamless],
    regions(request.regions?.length),
    begun(request),
    `${request.steps} steps`,
    guided(request.advanced),
    `seed ${request.seed}`,
    request.layout_reason && `${request.layout} layout: ${request.layout_reason}`,
    request.control && request.control_reason && `ControlNet ${request.control.name}: ${request.control_reason}`,
    request.model,
    took,
  ];
  return parts.filter(Boolean).join(" · ");
}

// A guidance interval that is not all of the schedule.
export const limits = (interval) => (interval && (interval[0] > 0 || interval[1] < 1) ? interval : null);

function guided(advanced) {
  const interval = limits(advanced?.guidance_interval);
  return interval ? `guidance from ${interval[0]} to ${interval[1]} of the schedule` : "";
}

function begun({ source, strength, upscale, fidelity, mask, style }) {
  if (!source) return "";
  if (upscale) return `enhanced ${upscale} times${typeof fidelity === "number" ? `, fidelity ${fidelity}` : ""}`;
  if (style) return styled(style);
  return `${mask || source.offset ? "inpainted" : "img2img"}, strength ${strength}`;
}

function styled({ prompt, style_image: hasPicture, strength }) {
  const parts = [prompt && `style “${prompt}”`, (hasPicture || !prompt) && "style picture"];
  return `${parts.filter(Boolean).join(" and ")}, strength ${strength}`;
}

function regions(number) {
  return number ? (number === 1 ? "one region" : `${number} regions`) : "";
}

export function state(job) {
  switch (job.status) {
    case "queued":
      if (job.queuePosition === null) return "Waiting for a worker";
      return job.queuePosition === 0 ? "Next in the queue" : `Queued, ${job.queuePosition} ahead`;
    case "processing":
      return (job.delay ? `Waiting: ${job.delay}` : phase(job)) + warning(job);
    case "succeeded":
      return "Done" + warning(job);
    case "canceled":
      return job.step ? `Canceled after step ${job.step} of ${job.steps}` : "Canceled before the first step";
    case "failed":
      return "Failed";
    default:
      return "Expired";
  }
}

function warning(job) {
  return job.warning ? ` (${job.warning})` : "";
}

function phase({ phase: name, step, steps, done, total, level, levels, canvas }) {
  if (name === "denoise") {
    const at = levels > 1 ? ` ${canvas ? `at ${size(...canvas)}` : `stage ${level} of ${levels}`}` : "";
    return `Denoising${at}, step ${Math.min(step + 1, steps)} of ${steps}`;
  }
  if (name === "decode") return done ? `Decoding, band ${done} of ${total}` : "Decoding";
  if (name === "store") return "Storing";
  return "Starting";
}

export function failure({ status, error }) {
  if (!error) return "";
  return status === "expired" ? `Expired: ${error.message}` : `Generation failed: ${error.message}`;
}

export function counts({ tiles, tilesExpected }) {
  return tiles || tilesExpected ? `${count(tiles)} of about ${count(tilesExpected)} tiles` : "";
}

export function left(seconds) {
  return seconds === null ? "" : `${duration(seconds)} left`;
}

export function duration(seconds) {
  const rounded = Math.round(seconds);
  if (rounded < 60) return `${rounded} s`;
  const minutes = Math.floor(rounded / 60);
  if (minutes < 60) return `${minutes} min ${rounded % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(value) {
  return value < 1e6 ? `${Math.max(1, Math.round(value / 1e3))} kB` : `${(value / 1e6).toFixed(1)} MB`;
}

export function ago(seconds) {
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export const short = { queued: "queued", processing: "running", succeeded: "", failed: "failed", canceled: "canceled", expired: "expired" };
