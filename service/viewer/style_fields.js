// The style that a source takes: in words, of a picture, or of both.

import { PictureInput } from "./picture_input.js";

export class StyleFields {
  // The ids of its elements begin with `name`.
  constructor(name) {
    const find = (part) => document.getElementById(`${name}-${part}`);
    Object.assign(this, { prompt: find("prompt"), strength: find("strength"), field: find("field"), note: find("note") });
    this.input = new PictureInput(name, this.field);
  }

  // That is sent.
  get file() {
    return this.field.hidden ? undefined : this.input.picture?.file;
  }

  read() {
    const strength = this.strength.value ? { strength: Number(this.strength.value) } : {};
    return { prompt: this.prompt.value.trim(), style_image: Boolean(this.file), ...strength };
  }

  // What must be given before the request can be sent.
  missing() {
    if (this.file || this.prompt.value.trim()) return null;
    const allowed = this.field.hidden ? "Give the style in words." : "Give the style in words, or choose a picture that has it.";
    return { field: "style.prompt", value: "", allowed };
  }

  // Copies that of a job, whose picture is not at hand any more. Whether it had one.
  fill(style) {
    this.prompt.value = style?.prompt ?? "";
    this.strength.value = style?.strength ?? "";
    this.input.set(null);
    return Boolean(style) && (style.style_image || !style.prompt);
  }

  // For a model; one without a card may take pictures.
  settle(card) {
    this.field.hidden = card?.style_image === false;
    this.note.textContent = this.field.hidden ? `No style picture: the model ${card.name} takes a style in words alone.` : "";
  }
}
