// The picture that a request begins with, and what is done with it.

import { tileUrl } from "./api.js";
import { MaskField } from "./mask_field.js";
import { PictureInput } from "./picture_input.js";
import { covers, placeSource } from "./placement.js";
import { StyleFields } from "./style_fields.js";

const WHOLE_LEVEL = 9; // of the deep zoom: at most 512 px a side, one tile
const FREE = "What the picture leaves free is inpainted.";
const UNREAD = "This browser cannot show the file; the server may still read it.";

export class SourceFields {
  constructor(root) {
    this.root = root;
    this.elements = root.closest("form").elements;
    this.image = root.querySelector("#source-image");
    this.mask = new MaskField(root);
    this.style = new StyleFields("style");
    this.input = new PictureInput("source", document);
  }

  get picture() {
    return this.input.picture;
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

  // The files that go with what is read, by the names of their parts.
  get files() {
    if (!this.picture) return {};
    return { source_image: this.picture.file, style_image: this.kind === "style" ? this.style.file : undefined };
  }

  read() {
    if (!this.picture) return {};
    const own = this.picture.job ? { job: this.picture.job } : {};
    if (this.kind === "enhance") return { source: own, upscale: Number(this.elements.upscale.value), ...this.number("fidelity") };
    const source = { ...own, fit: this.elements["source.fit"].value };
    if (this.kind === "style") return { source, style: this.style.read() };
    const begun = { source, ...this.number("strength") };
    return this.kind === "inpaint" ? { ...begun, mask: { ...this.mask.read(), feather_px: Number(this.elements["mask.feather_px"].value) } } : begun;
  }

  // What must be given before the request can be sent.
  missing([width, height]) {
    if (this.picture && this.kind === "style") return this.style.missing();
    if (!this.picture || this.kind !== "inpaint") return null;
    if (!(width && height)) return { field: "width_px and height_px", value: "", allowed: "needed to place what is inpainted" };
    return this.mask.shape ? null : { field: "mask", value: "", allowed: "Draw what is inpainted on the picture." };
  }

  // Copies those of a job. A picture that was sent is not at hand any more, that of another job is.
  fill({ source, source_job: made, strength, upscale, fidelity, mask, style, width_px, height_px }) {
    const { elements } = this;
    elements["source-kind"].value = upscale ? "enhance" : mask ? "inpaint" : style ? "style" : "img2img";
    elements["source.fit"].value = source?.fit ?? "fill";
    elements.strength.value = (style ? null : strength) ?? "";
    elements.upscale.value = upscale ?? 2;
    elements.fidelity.value = fidelity ?? "";
    elements["mask.feather_px"].value = mask?.feather_px ?? 32;
    this.mask.fill(mask, [width_px, height_px]);
    const hadStylePicture = this.style.fill(style);
    const isAtHand = made && !source.offset;
    this.input.set(isAtHand ? { job: source.job, url: smallUrl(source.job, made), size: [made.width_px, made.height_px], name: "The picture of another job" } : null);
    const leftOut = [source && !isAtHand && "The picture that it began with is left out: choose it again."];
    leftOut.push(mask && !this.mask.shape && isAtHand && "The mask picture is left out: draw what is inpainted.");
    leftOut.push(hadStylePicture && "The style picture is left out: choose it again.");
    this.say(leftOut.filter(Boolean).join(" "));
  }

  // For a result of this (width, height), by the model with this card.
  settle([width, height], card) {
    this.style.settle(card);
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
