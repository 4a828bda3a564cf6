// The size of the picture. What the user has not touched follows the picture that it begins with.

const SIZES = ["1024", "2048", "4096"];
const SIDES = ["width_px", "height_px"];

export class SizeFields {
  constructor(form) {
    this.elements = form.elements;
    this.choices = form.querySelector("#size-choices");
    this.sides = form.querySelector("#sides");
    this.note = form.querySelector("#size-note");
    this.touched = new Set();
    this.source = this.fixed = this.before = null;
  }

  read() {
    const { size, width_px: width, height_px: height } = this.elements;
    if (this.fixed) return this.fixed;
    return size.value === "free" ? [Number(width.value), Number(height.value)] : [Number(size.value), Number(size.value)];
  }

  fill([width, height]) {
    const isPreset = width === height && SIZES.includes(String(width));
    this.elements.size.value = isPreset ? String(width) : "free";
    this.elements.width_px.value = width;
    this.elements.height_px.value = height;
    this.touched = new Set(SIDES);
  }

  // A side that is emptied follows again.
  touch({ name, value }) {
    if (name === "size" && value !== "free") this.touched = new Set(SIDES);
    else if (SIDES.includes(name) && value) this.touched.add(name);
    else this.touched.delete(name);
  }

  // `source`: (width, height) of the picture that it begins with, [0, 0] if unknown, null if there is none;
  // `fixed`: what that decides alone; `edited`: the field that is being typed in, which stays.
  follow(source, fixed, edited) {
    if (!this.touched.size && !this.source !== !source) this.swap(source);
    this.source = source;
    this.fixed = fixed;
    if (source) SIDES.forEach((name, axis) => name === edited || this.touched.has(name) || this.complete(name, axis));
    this.settle();
  }

  // The choice before there was a source comes back after it.
  swap(source) {
    const { size, width_px: width, height_px: height } = this.elements;
    if (source) {
      this.before = [size.value, width.value, height.value];
      size.value = "free";
    } else if (this.before) {
      [size.value, width.value, height.value] = this.before;
    }
  }

  complete(name, axis) {
    const other = SIDES[1 - axis];
    const own = this.source[axis];
    const scale = this.touched.has(other) ? Number(this.elements[other].value) / this.source[1 - axis] : 1;
    this.elements[name].value = Math.round(own * scale) || "";
  }

  settle() {
    this.choices.hidden = Boolean(this.fixed);
    this.sides.hidden = Boolean(this.fixed) || this.elements.size.value !== "free";
    this.note.hidden = !this.fixed;
    this.note.textContent = this.fixed?.[0] ? `${this.fixed.join(" × ")}, by Enhance` : "As many times as large as the picture";
    for (const name of SIDES) this.elements[name].placeholder = this.source ? "its own" : "";
  }

  // For an error at one of them.
  showSides() {
    const { elements } = this;
    if (elements.size.value === "free") return;
    elements.width_px.value = elements.height_px.value = elements.size.value;
    elements.size.value = "free";
    this.settle();
  }
}
