// What can be made of a finished picture: a part again, more around it, variations, a larger one, one in another style.

import { createJob, deriveJob, tileUrl } from "./api.js";
import { MaskField } from "./mask_field.js";
import { StyleFields } from "./style_fields.js";

const WHOLE_LEVEL = 9; // of the deep zoom: at most 512 px a side, one tile
const HINT = "Draw the part on the picture.";
const VERBS = { reroll: "Re-roll this part", extend: "Extend", variations: "Make variations", enhance: "Enhance", style: "Restyle" };

export class DerivePanel {
  constructor(root, { onMade, findCard }) {
    Object.assign(this, { root, onMade, findCard });
    this.form = root.querySelector("form");
    this.mask = new MaskField(this.form);
    this.style = new StyleFields("restyle");
    for (const radio of this.form.elements.kind) radio.addEventListener("change", () => this.settle());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.form.addEventListener("input", () => this.refuse(""));
  }

  show(job) {
    const isNew = job.id !== this.job?.id;
    this.job = job;
    this.root.hidden = job.status !== "succeeded";
    if (isNew) this.clear(job);
    this.settle();
  }

  clear({ request }) {
    this.mask.fill(null, [request.width_px, request.height_px]);
    this.refuse("");
    this.form.elements.prompt.placeholder = request.prompt || "the picture's";
  }

  hide() {
    this.root.hidden = true;
  }

  get kind() {
    return this.form.elements.kind.value;
  }

  settle() {
    for (const part of this.form.querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(this.kind);
    this.form.querySelector("[type=submit]").textContent = VERBS[this.kind];
    if (!this.job) return;
    this.style.settle(this.findCard(this.job.request.model));
    this.mask.area.svg.style.backgroundImage = this.job.status === "succeeded" ? `url("${smallUrl(this.job)}")` : "none";
  }

  async submit() {
    const missing = this.missing();
    if (missing) return this.refuse(missing);
    const button = this.form.querySelector("[type=submit]");
    button.disabled = true;
    try {
      this.onMade(await this.make());
    } catch (refusal) {
      const errors = refusal.errors?.map(({ field, allowed }) => `${field}: ${allowed}`) ?? [];
      this.refuse(errors.join(" ") || refusal.message);
    } finally {
      button.disabled = false;
    }
  }

  missing() {
    if (this.kind === "style") return this.style.missing()?.allowed;
    return this.kind === "reroll" && !this.mask.shape ? HINT : "";
  }

  // The first job that was made.
  async make() {
    const { kind, job } = this;
    if (kind === "enhance") return createJob({ ...this.begun(), ...this.read("upscale", "fidelity") });
    if (kind === "style") return createJob({ ...this.begun(), style: this.style.read() }, { style_image: this.style.file });
    const answer = await deriveJob(job.id, kind, kind === "variations" ? this.read("count", "amount") : { ...this.prompt(), ...this.part() });
    return kind === "variations" ? answer.data[0] : answer;
  }

  part() {
    if (this.kind === "extend") return this.read("left_px", "right_px", "top_px", "bottom_px");
    return { region: this.mask.read(), ...this.read("strength") };
  }

  // A request that begins with the picture.
  begun() {
    const { model, seed, output_format, bit_depth, dpi, embed_metadata, prompt, negative_prompt } = this.job.request;
    const own = { model, seed, output_format, bit_depth, dpi, embed_metadata, prompt, negative_prompt };
    return { source: { job: this.job.id }, ...own, ...this.prompt() };
  }

  prompt() {
    const prompt = this.form.elements.prompt.value.trim();
    return prompt ? { prompt } : {};
  }

  read(...names) {
    return Object.fromEntries(names.map((name) => [name, Number(this.form.elements[name].value)]));
  }

  refuse(text) {
    this.root.querySelector("#refusal-derive").textContent = text;
  }
}

function smallUrl({ id, request }) {
  const levels = Math.ceil(Math.log2(Math.max(request.width_px, request.height_px)));
  return tileUrl(id, Math.min(WHOLE_LEVEL, levels), 0, 0);
}
