// Where regions are drawn, moved and reshaped: an outline of the picture.

import { colour, cornersOf, drawDot, drawLine, drawShape, holds, order } from "./region_shapes.js";

const LEAST = 0.02; // of a side; less is a tap
const NEAR_PX = 14; // on the screen: so near its first corner a polygon is closed
const SAME_PX = 4; // nearer than that it is the same corner

export class RegionArea {
  constructor(svg, { onDraw, onEdit, onSelect, onDraft }) {
    Object.assign(this, { svg, onDraw, onEdit, onSelect, onDraft });
    this.regions = [];
    this.size = [1, 1];
    this.full = false;
    this.draft = this.drag = null;
    svg.addEventListener("pointerdown", (event) => this.begin(event));
    svg.addEventListener("pointermove", (event) => this.move(event));
    svg.addEventListener("pointerup", (event) => this.end(event));
    svg.addEventListener("pointercancel", () => this.cancel());
  }

  setTool(tool) {
    this.tool = tool;
    this.svg.dataset.tool = tool;
    this.cancel();
  }

  draw(regions, selected, size) {
    Object.assign(this, { regions, selected, size });
    this.svg.setAttribute("viewBox", `0 0 ${size.join(" ")}`);
    this.svg.style.setProperty("--ratio", size[0] / size[1]);
    const shapes = regions.flatMap((region, index) => this.drawRegion(region, index));
    this.svg.replaceChildren(...shapes, ...this.drawDraft());
  }

  drawRegion(region, index) {
    const chosen = region === this.selected;
    const [shape, label] = drawShape(region, index, this.size, chosen);
    shape.dataset.region = index;
    const corners = chosen && this.tool === "move" ? cornersOf(region) : [];
    const handles = corners.map((corner, at) => {
      const handle = drawDot(corner, this.size, "region-handle", 2.5);
      Object.assign(handle.dataset, { region: index, corner: at });
      colour(handle, index);
      return handle;
    });
    return [shape, label, ...handles];
  }

  drawDraft() {
    if (!this.draft) return [];
    const { kind, points, at } = this.draft;
    if (kind === "rectangle") return [drawLine("polygon", cornersOf({ kind, points: [points[0], at] }), this.size, "region-draft")];
    const line = drawLine("polyline", at ? [...points, at] : points, this.size, "region-draft");
    return [line, ...points.map((point) => drawDot(point, this.size, "region-dot", 1.5))];
  }

  begin(event) {
    if (event.button !== 0) return;
    event.preventDefault(); // no text is selected, and no field loses its focus
    this.svg.setPointerCapture(event.pointerId);
    const point = this.locate(event);
    if (this.tool === "move") this.grasp(event.target, point);
    else if (this.tool === "rectangle" && !this.full) this.draft = { kind: "rectangle", points: [point], at: point };
  }

  move(event) {
    const point = this.locate(event);
    if (this.drag) this.pull(point);
    else if (this.draft) this.draft.at = point;
    else return;
    this.draw(this.regions, this.selected, this.size);
  }

  end(event) {
    const point = this.locate(event);
    if (this.tool === "move") this.drag = null;
    else if (this.tool === "polygon" && !this.full) this.addCorner(point);
    else if (this.draft) this.finishRectangle(point);
  }

  finishRectangle(point) {
    const [start] = this.draft.points;
    this.cancel();
    if (start.every((at, axis) => Math.abs(point[axis] - at) >= LEAST)) {
      this.onDraw({ kind: "rectangle", points: order(start, point) });
    } else {
      const region = this.regions.findLast((each) => holds(cornersOf(each), point));
      if (region) this.onSelect(region);
    }
  }

  addCorner(point) {
    this.draft ??= { kind: "polygon", points: [] };
    const { points } = this.draft;
    if (points.length > 2 && this.isNear(point, points[0], NEAR_PX)) return this.finishPolygon();
    if (!points.length || !this.isNear(point, points.at(-1), SAME_PX)) points.push(point);
    this.draft.at = null;
    this.onDraft(points.length);
    this.draw(this.regions, this.selected, this.size);
  }

  finishPolygon() {
    const { points } = this.draft;
    this.cancel();
    this.onDraw({ kind: "polygon", points });
  }

  cancel() {
    this.draft = this.drag = null;
    this.onDraft(0);
    this.draw(this.regions, this.selected, this.size);
  }

  grasp(target, point) {
    const region = this.regions[target.dataset.region];
    if (!region) return;
    const corner = target.dataset.corner === undefined ? null : Number(target.dataset.corner);
    this.drag = { region, corner, from: point, points: region.points };
    this.onSelect(region);
  }

  pull(point) {
    const { region, corner, from, points } = this.drag;
    if (corner === null) region.points = shift(points, from, point);
    else if (region.kind === "polygon") region.points = points.with(corner, point);
    else region.points = order(cornersOf({ kind: "rectangle", points })[(corner + 2) % 4], point);
    this.onEdit(region);
  }

  locate(event) {
    const box = this.svg.getBoundingClientRect();
    return [clamp((event.clientX - box.left) / box.width, 0, 1), clamp((event.clientY - box.top) / box.height, 0, 1)];
  }

  isNear(a, b, px) {
    const box = this.svg.getBoundingClientRect();
    return Math.hypot((a[0] - b[0]) * box.width, (a[1] - b[1]) * box.height) < px;
  }
}

// As far as the picture's edges allow.
function shift(points, from, to) {
  const steps = [0, 1].map((axis) => {
    const along = points.map((point) => point[axis]);
    return clamp(to[axis] - from[axis], -Math.min(...along), 1 - Math.max(...along));
  });
  return points.map((point) => point.map((at, axis) => at + steps[axis]));
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
