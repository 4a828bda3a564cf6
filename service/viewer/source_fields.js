// The picture that a request begins with, and what is done with it.

import { tileUrl } from "./api.js";
import { MaskField } from "./mask_field.js";
import { PictureInput, readFile } from "./picture_input.js";
import { covers, placeSource } from "./placement.js";
import * as words from "./words.js";

const WHOLE_LEVEL = 9; // of the deep zoom: at most 512 px a side, one tile
const FREE = "What the picture leaves free is inpainted.";
const UNREAD = "This browser cannot show the file; the server may still read it.";

export class SourceFields {
  constructor(root, onChange) {
    Object.assign(this, { root, onChange, picture: null });
    this.elements = root.closest("form").elements;
    this.image = root.querySelector("#source-image");
    this.mask = new MaskField(root);
    this.input = new PictureInput(root.querySelector("#source_image"), root.querySelector("#source-drop"), (file) => this.choose(file));
    root.querySelector("#source-remove").addEventListener("click", () => this.remove());
  }

  get kind() {
    return this.elements["source-kind"].value;
  }

  // (width, height); null without a picture.
  get size() {
    return this.picture?.size ?? null;
  }

  // Of the result, where the source alone decides it.
  get enlarged() {
    return this.picture && this.kind === "enhance" ? this.size.map((side) => side * Number(this.elements.upscale.value)) : null;
  }

  read() {
    if (!this.picture) return {};
    const source = this.picture.job ? { job: this.picture.job } : {};
    if (this.kind === "enhance") return { source, upscale: Number(this.elements.upscale.value), ...this.number("fidelity") };
    const begun = { source: { ...source, fit: this.elements["source.fit"].value }, ...this.number("strength") };
    return this.kind === "inpaint" ? { ...begun, mask: { ...this.mask.read(), feather_px: Number(this.elements["mask.feather_px"].value) } } : begun;
  }

  // What must be given before the request can be sent.
  missing([width, height]) {
    if (!this.picture || this.kind !== "inpaint") return null;
    if (!(width && height)) return { field: "width_px and height_px", value: "", allowed: "needed to place what is inpainted" };
    return this.mask.shape ? null : { field: "mask", value: "", allowed: "Draw what is inpainted on the picture." };
  }

  // Copies those of a job. A picture that was sent is not at hand any more, that of another job is.
  fill({ source, source_job: made, strength, upscale, fidelity, mask, width_px, height_px }) {
    const { elements } = this;
    elements["source-kind"].value = upscale ? "enhance" : mask ? "inpaint" : "img2img";
    elements["source.fit"].value = source?.fit ?? "fill";
    elements.strength.value = strength ?? "";
    elements.upscale.value = upscale ?? 2;
    elements.fidelity.value = fidelity ?? "";
    elements["mask.feather_px"].value = mask?.feather_px ?? 32;
    this.mask.fill(mask, [width_px, height_px]);
    const isAtHand = made && !source.offset;
    this.set(isAtHand ? { job: source.job, url: smallUrl(source.job, made), size: [made.width_px, made.height_px], name: "The picture of another job" } : null);
    if (source && !isAtHand) this.say("The picture that it began with is left out: choose it again.");
    else if (mask && !this.mask.shape) this.say("The mask picture is left out: draw what is inpainted.");
  }

  async choose(file) {
    const turn = (this.turn = {});
    const picture = await readFile(file);
    if (this.turn === turn) this.set(picture);
    else URL.revokeObjectURL(picture.url);
  }

  remove() {
    this.set(null);
    this.root.querySelector("#source_image").focus();
  }

  set(picture) {
    if (this.picture?.file) URL.revokeObjectURL(this.picture.url);
    this.turn = null;
    this.picture = picture;
    this.input.clear();
    this.say("");
    this.root.querySelector("#source-drop").hidden = Boolean(picture);
    this.root.querySelector("#source-chosen").hidden = !picture;
    if (picture) this.show(picture);
    this.onChange();
  }

  show({ url, name, size, bytes }) {
    this.root.open = true;
    this.image.src = url;
    this.image.hidden = !size[0];
    const facts = [size[0] && words.size(...size), bytes && words.bytes(bytes)].filter(Boolean).join(" · ");
    this.root.querySelector("#source-name").textContent = name;
    this.root.querySelector("#source-facts").textContent = facts;
  }

  // For a result of this (width, height).
  settle([width, height]) {
    for (const part of this.root.querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(this.kind);
    if (!this.picture) return;
    const isKnown = this.size[0] && width && height;
    const place = isKnown ? placeSource({ ...this.read(), width_px: width, height_px: height }, this.size) : null;
    const isCovered = !place || covers(place, [width, height]);
    const whole = width && height ? [width, height] : [4, 3];
    this.mask.setSize(whole);
    this.image.parentElement.hidden = !this.size[0] && this.kind !== "inpaint";
    this.drawPlace(place, whole);
    this.elements.strength.placeholder = this.kind === "inpaint" || !isCovered ? "1" : "0.6";
    this.root.querySelector("#source-note").textContent = this.size[0] ? (isCovered ? "" : FREE) : UNREAD;
  }

  drawPlace(place, [width, height]) {
    this.image.parentElement.style.setProperty("--ratio", width / height);
    this.image.parentElement.toggleAttribute("data-still", this.kind !== "inpaint");
    if (!place) return;
    const share = (part, whole) => `${(part / whole) * 100}%`;
    Object.assign(this.image.style, {
      left: share(place.left, width),
      top: share(place.top, height),
      width: share(place.width, width),
      height: share(place.height, height),
    });
  }

  say(text) {
    this.root.querySelector("#refusal-source").textContent = text;
    if (text) this.root.open = true;
  }

  number(name) {
    const { value } = this.elements[name];
    return value ? { [name]: Number(value) } : {};
  }
}

function smallUrl(job, { width_px, height_px }) {
  return tileUrl(job, Math.min(WHOLE_LEVEL, Math.ceil(Math.log2(Math.max(width_px, height_px)))), 0, 0);
}
