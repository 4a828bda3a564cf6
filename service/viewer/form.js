// The request form: reading and filling it, and showing errors at their fields.

import { RegionList } from "./regions.js";
import { SizeFields } from "./size_fields.js";
import { SourceFields } from "./source_fields.js";
import * as words from "./words.js";

const ATTENTION = { auto: "Automatic", off: "Off", conductor: "Conductor", "conductor+neighbours": "Conductor and neighbours" };
const AT = { style: "style.prompt", mask_image: "mask", width_px: "size", height_px: "size", "width_px and height_px": "size", source_image: "source", style_image: "style.style_image" };

export class RequestForm {
  constructor(form, { onSubmit, onChange }) {
    this.form = form;
    this.onChange = onChange;
    this.submit = form.querySelector("#submit");
    this.sizes = new SizeFields(form);
    this.regions = new RegionList(form.querySelector("#regions"), () => onChange(this.outline()));
    this.source = new SourceFields(form.querySelector("#source"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const missing = this.missing();
      if (missing) this.showRefusal({ errors: [missing] });
      else onSubmit(this.read(), this.source.files);
    });
    form.addEventListener("input", ({ target }) => {
      this.clearRefusal(target);
      if (target.name === "prompt") this.fitPrompt();
      this.sizes.touch(target);
      this.changed(target.name);
    });
    form.addEventListener("change", () => this.changed()); // no longer being typed in
    form.elements.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    form.querySelector("#dice").addEventListener("click", () => this.rollSeed());
    this.settle();
  }

  read() {
    const { elements } = this.form;
    const source = this.source.read();
    const request = {
      prompt: elements.prompt.value.trim(),
      ...this.readSides(source),
      seamless: elements.seamless.value,
      layout: elements.layout.value,
      output_format: elements.output_format.value,
      bit_depth: Number(elements.bit_depth.value),
    };
    for (const name of ["seed", "model", "negative_prompt"]) {
      if (elements[name].value.trim()) request[name] = elements[name].value.trim();
    }
    if (elements.priority.value !== "normal") request.priority = elements.priority.value;
    for (const name of ["steps", "guidance_scale", "dpi", "start_within_s", "finish_within_s"]) {
      if (elements[name].value) request[name] = Number(elements[name].value);
    }
    const advanced = this.readAdvanced();
    if (Object.keys(advanced).length) request.advanced = advanced;
    const regions = this.regions.read();
    if (regions.length) request.regions = regions;
    return { ...request, ...source, ...this.readMetadata() };
  }

  // What nothing is made without.
  missing() {
    const { prompt, source, regions } = this.read();
    if (!prompt && !source && !regions) return { field: "prompt", allowed: "Say what the picture shows." };
    return this.source.missing(this.sizes.read());
  }

  // Only as it is typed: a page that moves under a click loses it.
  fitPrompt() {
    const { prompt } = this.form.elements;
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight + 2}px`;
  }

  // As it is drawn before there is a job: with its size, whoever decides it.
  outline() {
    const [width_px, height_px] = this.sizes.read();
    return { ...this.read(), width_px, height_px };
  }

  // None beside `upscale`, and beside a source none that is left empty.
  readSides({ source, upscale }) {
    const [width_px, height_px] = this.sizes.read();
    if (upscale) return {};
    return source ? { width_px: width_px || undefined, height_px: height_px || undefined } : { width_px, height_px };
  }

  readAdvanced() {
    const { elements } = this.form;
    const advanced = {};
    const modules = elements["advanced.num_modules"].value;
    if (modules) advanced.num_modules = Number(modules);
    const attention = elements["advanced.attention"].value;
    if (attention !== "auto") advanced.attention = attention;
    const interval = elements.model.value === this.copied?.model && words.limits(this.copied.advanced.guidance_interval);
    if (interval) advanced.guidance_interval = interval;
    return advanced;
  }

  // Only the job whose settings were copied says so: there is no field for it.
  readMetadata() {
    return this.copied?.embed_metadata === false ? { embed_metadata: false } : {};
  }

  // Copies the settings of a job.
  fill(request) {
    const { elements } = this.form;
    this.copied = request;
    elements.prompt.value = request.prompt;
    this.fitPrompt();
    this.sizes.fill([request.width_px, request.height_px]);
    elements.seamless.value = request.seamless;
    elements.seed.value = request.seed;
    elements.output_format.value = request.output_format;
    elements.bit_depth.value = String(request.bit_depth);
    elements.dpi.value = request.dpi;
    elements.negative_prompt.value = request.negative_prompt;
    elements.model.value = request.model;
    elements.layout.value = request.layout;
    elements.steps.value = request.steps;
    elements.guidance_scale.value = request.guidance_scale;
    elements.priority.value = request.priority;
    elements.start_within_s.value = request.start_within_s ?? "";
    elements.finish_within_s.value = request.finish_within_s ?? "";
    elements["advanced.num_modules"].value = request.advanced.num_modules ?? "";
    this.regions.fill(request);
    this.source.fill(request);
    this.settle();
    elements["advanced.attention"].value = request.advanced.attention ?? "auto";
    elements.prompt.focus();
  }

  setModels(cards) {
    const { model } = this.form.elements;
    const chosen = model.value;
    model.replaceChildren(
      new Option("Default", ""),
      ...cards.map((card) => new Option(card.is_default ? `${card.name} (default)` : card.name, card.name)),
    );
    model.value = cards.some((card) => card.name === chosen) ? chosen : "";
    this.cards = cards;
    this.settle();
  }

  card() {
    const name = this.form.elements.model.value;
    return this.cards?.find((card) => (name ? card.name === name : card.is_default)) ?? this.cards?.[0];
  }

  setBusy(busy) {
    this.submit.disabled = busy;
    this.submit.textContent = busy ? "Submitting" : "Generate";
  }

  clearRefusals() {
    for (const line of this.form.querySelectorAll(".refusal")) line.textContent = "";
    for (const field of this.form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  }

  // Shows each error of the problem body at its field.
  showRefusal(refusal) {
    this.clearRefusals();
    const unplaced = refusal.errors.filter((error) => !this.showAtField(error));
    const general = unplaced.map(({ field, allowed }) => (field ? `${field}: ${allowed}` : allowed));
    if (!refusal.errors.length) general.push(refusal.message);
    this.line("form").textContent = general.join(" ");
    this.form.querySelector("[aria-invalid]")?.focus();
  }

  showAtField({ field, value, allowed }) {
    if (field.startsWith("regions")) return this.regions.showRefusal(field, allowed);
    const name = placeOf(field);
    const line = this.line(name);
    if (!line || name === "form") return false;
    const word = { width_px: `Width ${value}: `, height_px: `Height ${value}: `, "width_px and height_px": value && `${value}: ` }[field] ?? "";
    line.textContent += `${line.textContent ? " " : ""}${word}${sentence(allowed, word)}`;
    line.closest("details")?.setAttribute("open", "");
    if (name === "size") this.sizes.showSides();
    const input = this.form.elements[field] ?? this.form.elements[name];
    if (input?.setAttribute) {
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", line.id);
    }
    return true;
  }

  clearRefusal(target) {
    const place = target.closest("[data-field]");
    const line = place && this.line(place.dataset.field);
    if (line) line.textContent = "";
    this.line("form").textContent = "";
    for (const each of place?.querySelectorAll("[aria-invalid]") ?? []) each.removeAttribute("aria-invalid");
  }

  line(name) {
    return document.getElementById(`refusal-${name}`);
  }

  rollSeed() {
    const [high, low] = crypto.getRandomValues(new Uint32Array(2));
    this.form.elements.seed.value = String((BigInt(high) << 32n | BigInt(low)) % 10n ** 9n);
    this.clearRefusal(this.form.elements.seed);
  }

  changed(edited) {
    this.settle(edited);
    this.onChange(this.outline());
  }

  // `edited`: the field that is being typed in.
  settle(edited) {
    const { elements } = this.form;
    this.sizes.follow(this.source.size, this.source.enlarged, edited);
    this.regions.setSize(...this.sizes.read());
    this.source.settle(this.sizes.read(), this.card());
    const card = this.card();
    elements.steps.placeholder = card?.default_steps ?? "";
    elements.guidance_scale.placeholder = card?.default_guidance_scale ?? "";
    elements["advanced.num_modules"].placeholder = card?.default_num_modules ?? "";
    this.offerAttention(card?.attention ?? []);
  }

  // What the model supports; one that supports nothing has no choice.
  offerAttention(kinds) {
    const select = this.form.elements["advanced.attention"];
    const chosen = select.value;
    const offered = ["auto", ...kinds];
    select.replaceChildren(...offered.map((kind) => new Option(ATTENTION[kind] ?? kind, kind)));
    select.value = offered.includes(chosen) ? chosen : "auto";
    select.closest(".field").hidden = kinds.length < 2;
  }
}

// The line that its errors are shown at.
function placeOf(field) {
  if (/^mask\.(rectangle|polygon)/.test(field)) return "mask";
  if (/^source\.(job|offset|feather_px)/.test(field)) return "source";
  return AT[field] ?? field;
}

function sentence(text, before) {
  return before ? text : text.charAt(0).toUpperCase() + text.slice(1);
}
