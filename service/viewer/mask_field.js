// What of a picture is inpainted: one shape, drawn or given by its corners.

import { RegionArea } from "./region_area.js";
import { order, toPixels, toShares } from "./region_shapes.js";

const HINTS = {
  rectangle: "Drag a rectangle over what is inpainted; all else stays.",
  polygon: "Tap each corner; tap the first again to close.",
  move: "Drag the shape to move it, a corner to reshape it.",
};

export class MaskField {
  constructor(root) {
    Object.assign(this, { shape: null, size: [1, 1] });
    const find = (name) => root.querySelector(`[data-mask="${name}"]`);
    this.hint = find("hint");
    this.corners = find("corners");
    this.close = find("close");
    this.area = new RegionArea(find("area"), {
      onDraw: (shape) => this.put(shape),
      onEdit: () => this.showCorners(),
      onSelect: () => this.draw(),
      onDraft: (corners) => (this.close.hidden = corners < 3),
    });
    for (const radio of root.querySelectorAll("[name=mask-tool]")) radio.addEventListener("change", () => this.setTool(radio.value));
    this.close.addEventListener("click", () => this.area.finishPolygon());
    this.corners.addEventListener("input", () => this.readCorners());
    root.addEventListener("keydown", ({ key }) => key === "Escape" && this.area.cancel());
    this.setTool("rectangle");
  }

  setTool(tool) {
    this.area.setTool(tool);
    this.hint.textContent = HINTS[tool];
    this.draw();
  }

  // In pixels; null if there is none.
  read() {
    return this.shape && toPixels(this.shape, this.size);
  }

  fill(mask, size) {
    this.size = size;
    this.put(mask ? toShares(mask, size) : null);
  }

  put(shape) {
    this.shape = shape;
    this.showCorners();
    this.draw();
  }

  // The shape keeps its place in the picture, whatever its size.
  setSize(size) {
    const isNew = size.join() !== this.size.join();
    this.size = size;
    if (isNew) this.showCorners();
    this.draw();
  }

  draw() {
    this.area.draw(this.shape ? [this.shape] : [], this.shape, this.size);
  }

  // Two opposite corners are a rectangle, more a polygon. What is half typed changes nothing yet.
  readCorners() {
    const numbers = this.corners.value.match(/\d+/g)?.map(Number) ?? [];
    if (!numbers.length) this.shape = null;
    if (numbers.length >= 4 && numbers.length % 2 === 0) {
      const points = numbers.flatMap((x, index) => (index % 2 ? [] : [[x / this.size[0], numbers[index + 1] / this.size[1]]]));
      this.shape = points.length > 2 ? { kind: "polygon", points } : { kind: "rectangle", points: order(...points) };
    }
    this.draw();
  }

  showCorners() {
    const points = this.shape?.points ?? [];
    this.corners.value = points.map((point) => point.map((at, axis) => Math.round(at * this.size[axis])).join(",")).join(" ");
  }
}
