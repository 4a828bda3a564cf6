// Wiring: form, address, picture.

import { Refusal, createJob, fetchJob, fetchModels } from "./api.js";
import { Caption } from "./caption.js";
import { Compare } from "./compare.js";
import { DerivePanel } from "./derive.js";
import { RequestForm } from "./form.js";
import { JobPage } from "./job_page.js";
import { Lineage } from "./lineage.js";
import { PictureView } from "./picture_view.js";
import { RecentList } from "./recent_list.js";
import { drawSheet, hideSheet } from "./sheet.js";
import { loadAccount } from "./sign_in.js";
import { Tools } from "./tools.js";

const LOOK_MS = 15000;
const DEFAULT_TILE_PX = 512;
const byId = (id) => document.getElementById(id);
const panes = document.querySelector(".panes");

let page = null;
let view = null;
let tools = null;
let compare = null;
let trouble = null;
const caption = new Caption({ onCancel: () => page?.cancel(), onAgain: () => form.fill(page.job.request) });
const form = new RequestForm(byId("form"), { onSubmit: submit, onChange: plan });
const derive = new DerivePanel(byId("derive"), { onMade: (record) => go(record.id), findCard });
const lineage = new Lineage((id) => go(id));
const recent = new RecentList(byId("recent"), byId("recent-empty"), (id) => go(id));

addEventListener("popstate", () => openAddress());
document.addEventListener("visibilitychange", () => document.hidden || lookAgain());
setInterval(() => document.hidden || recent.refresh(), LOOK_MS);
openAddress();
// On a phone the keyboard would cover the page.
if (!location.search && matchMedia("(min-width: 56rem)").matches) byId("prompt").focus();
recent.refresh();
loadModels();
loadAccount();

function lookAgain() {
  recent.refresh();
  loadAccount();
}

async function submit(request, pictures) {
  form.setBusy(true);
  form.clearRefusals();
  try {
    const record = await createJob(request, pictures);
    history.pushState(null, "", `?job=${encodeURIComponent(record.id)}`);
    openJob(record);
    byId("title").focus({ preventScroll: true });
    byId("frame").scrollIntoView({ block: "nearest" });
    recent.refresh();
  } catch (refusal) {
    form.showRefusal(asRefusal(refusal));
  } finally {
    form.setBusy(false);
  }
}

function go(jobId) {
  history.pushState(null, "", `?job=${encodeURIComponent(jobId)}`);
  openAddress();
  scrollTo({ top: 0 });
}

async function openAddress() {
  const jobId = new URLSearchParams(location.search).get("job");
  recent.mark(jobId);
  if (!jobId) return closeJob();
  try {
    const record = await fetchJob(jobId);
    if (new URLSearchParams(location.search).get("job") === jobId) openJob(record);
  } catch (refusal) {
    closeJob();
    trouble = refusal.status === 404 ? "This picture does not exist, or was deleted." : refusal.message;
    drawPlan(form.outline());
    panes.dataset.open = "";
  }
}

function openJob(record) {
  compare?.withdraw();
  page?.close();
  hideSheet();
  panes.dataset.open = "";
  byId("viewer").hidden = false;
  view ??= new PictureView(byId("viewer"));
  tools ??= new Tools(view);
  compare ??= new Compare(view, (isOn) => tools.setPaired(isOn));
  tools.show(true);
  recent.mark(record.id);
  page = new JobPage(record, {
    view,
    caption,
    tools,
    tilePx: tilePx(record.request.model),
    onEnd: () => recent.refresh(),
    onDraw: drawRelations,
    onShown: (job) => compare.offer(job),
  });
  page.show();
}

function drawRelations(job) {
  derive.show(job);
  lineage.draw(job);
}

function closeJob() {
  compare?.withdraw();
  page?.close();
  page = null;
  trouble = null;
  delete panes.dataset.open;
  byId("viewer").hidden = true;
  tools?.show(false);
  caption.hide();
  derive.hide();
  document.title = "Chorale";
  drawPlan(form.outline());
}

async function loadModels() {
  try {
    form.setModels((await fetchModels()).data);
    derive.settle();
    if (!page) drawPlan(form.outline());
  } catch {
    // The form works without: the server chooses its default model.
  }
}

function drawPlan(request) {
  drawSheet(request, tilePx(request.model), trouble);
}

function plan(request) {
  if (page) return;
  trouble = null;
  drawPlan(request);
}

function tilePx(model) {
  return findCard(model)?.native_size_px ?? DEFAULT_TILE_PX;
}

function findCard(model) {
  return form.cards?.find((each) => each.name === model) ?? form.card();
}

function asRefusal(error) {
  if (error instanceof Refusal) return error;
  console.error(error);
  return new Refusal({ detail: `This page failed: ${error.message}`, status: 0 });
}
