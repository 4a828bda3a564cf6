// Where regions are drawn, moved and reshaped: an outline of the picture, in its own pixels.

const SVG = "http://www.w3.org/2000/svg";
const LEAST = 0.02; // of a side; less is a tap
const NEAR_PX = 14; // on the screen: so near its first corner a polygon is closed

export class RegionArea {
  // Points are shares of the picture's sides, [across, down], from the top left corner.
  constructor(svg, { onDraw, onEdit, onSelect, onDraft }) {
    Object.assign(this, { svg, onDraw, onEdit, onSelect, onDraft });
    this.tool = "rectangle";
    this.full = false;
    this.draft = null;
    this.drag = null;
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

  draw(regions, selected, width, height) {
    Object.assign(this, { regions, selected, width, height });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.style.setProperty("--ratio", width / height);
    this.svg.replaceChildren(...regions.flatMap((region, index) => this.drawRegion(region, index)), ...this.drawDraft());
  }

  redraw() {
    this.draw(this.regions, this.selected, this.width, this.height);
  }

  drawRegion(region, index) {
    const corners = cornersOf(region);
    const chosen = region === this.selected;
    const shape = this.element("polygon", { class: chosen ? "region-shape chosen" : "region-shape", points: this.text(corners) });
    const label = this.element("text", { class: "region-label", ...this.place(middle(corners), "x", "y"), "font-size": this.unit() * 5 });
    label.textContent = index + 1;
    shape.dataset.region = index;
    colour(shape, index);
    colour(label, index);
    return [shape, label, ...(chosen && this.tool === "move" ? corners.map((corner, at) => this.drawHandle(corner, index, at)) : [])];
  }

  drawHandle(corner, index, at) {
    const handle = this.element("circle", { class: "region-handle", ...this.place(corner, "cx", "cy"), r: this.unit() * 2 });
    Object.assign(handle.dataset, { region: index, corner: at });
    colour(handle, index);
    return handle;
  }

  drawDraft() {
    if (!this.draft) return [];
    const { kind, points, at } = this.draft;
    const shown = kind === "rectangle" ? cornersOf({ kind, points: [points[0], at] }) : [...points, ...(at ? [at] : [])];
    const line = this.element(kind === "rectangle" ? "polygon" : "polyline", { class: "region-draft", points: this.text(shown) });
    const dots = kind === "polygon" ? points.map((point) => this.element("circle", { class: "region-dot", ...this.place(point, "cx", "cy"), r: this.unit() * 1.5 })) : [];
    return [line, ...dots];
  }

  begin(event) {
    if (event.button !== 0) return;
    event.preventDefault(); // no text is selected, and no field loses its focus
    this.svg.setPointerCapture(event.pointerId);
    const point = this.locate(event);
    if (this.tool === "move") return this.grasp(event.target, point);
    if (this.full) return;
    if (this.tool === "rectangle") this.draft = { kind: "rectangle", points: [point], at: point };
  }

  move(event) {
    const point = this.locate(event);
    if (this.drag) this.pull(point);
    else if (this.draft) this.draft.at = point;
    else return;
    this.redraw();
  }

  end(event) {
    const point = this.locate(event);
    if (this.drag) {
      this.drag = null;
      return;
    }
    if (this.full) return;
    if (this.tool === "polygon") this.addCorner(point);
    else if (this.draft) this.finishRectangle(point);
  }

  finishRectangle(point) {
    const [start] = this.draft.points;
    this.cancel();
    if (Math.abs(point[0] - start[0]) < LEAST || Math.abs(point[1] - start[1]) < LEAST) {
      const region = this.regions.findLast((each) => holds(cornersOf(each), point));
      if (region) this.onSelect(region);
      return;
    }
    this.onDraw({ kind: "rectangle", points: order(start, point) });
  }

  addCorner(point) {
    this.draft ??= { kind: "polygon", points: [], at: null };
    const { points } = this.draft;
    if (points.length > 2 && this.isNear(point, points[0])) return this.finishPolygon();
    if (!points.length || !this.isNear(point, points.at(-1), 4)) points.push(point);
    this.draft.at = null;
    this.onDraft(points.length);
    this.redraw();
  }

  finishPolygon() {
    if (!(this.draft?.points.length > 2)) return;
    const { points } = this.draft;
    this.cancel();
    this.onDraw({ kind: "polygon", points });
  }

  cancel() {
    this.draft = this.drag = null;
    this.onDraft(0);
    if (this.regions) this.redraw();
  }

  grasp(target, point) {
    const region = this.regions[target.dataset.region];
    if (!region) return;
    const corner = target.dataset.corner === undefined ? null : Number(target.dataset.corner);
    this.onSelect(region);
    this.drag = { region, corner, from: point, points: region.points };
  }

  pull([x, y]) {
    const { region, corner, from, points } = this.drag;
    if (corner === null) {
      const steps = [x - from[0], y - from[1]].map((step, axis) => {
        const along = points.map((point) => point[axis]);
        return clamp(step, -Math.min(...along), 1 - Math.max(...along));
      });
      region.points = points.map((point) => point.map((at, axis) => at + steps[axis]));
    } else if (region.kind === "polygon") {
      region.points = points.map((point, index) => (index === corner ? [x, y] : point));
    } else {
      region.points = order(cornersOf({ kind: "rectangle", points })[(corner + 2) % 4], [x, y]);
    }
    this.onEdit(region);
  }

  locate(event) {
    const box = this.svg.getBoundingClientRect();
    return [clamp((event.clientX - box.left) / box.width, 0, 1), clamp((event.clientY - box.top) / box.height, 0, 1)];
  }

  isNear(a, b, px = NEAR_PX) {
    const box = this.svg.getBoundingClientRect();
    return Math.hypot((a[0] - b[0]) * box.width, (a[1] - b[1]) * box.height) < px;
  }

  // A hundredth of the longer side.
  unit() {
    return Math.max(this.width, this.height) / 100;
  }

  place([x, y], across, down) {
    return { [across]: x * this.width, [down]: y * this.height };
  }

  text(points) {
    return points.map(([x, y]) => `${x * this.width},${y * this.height}`).join(" ");
  }

  element(name, attributes) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }
}

export function colour(element, index) {
  element.style.setProperty("--hue", (20 + index * 137.5) % 360); // the golden angle: any few differ
}

function cornersOf({ kind, points }) {
  if (kind === "polygon") return points;
  const [[left, top], [right, bottom]] = points;
  return [[left, top], [right, top], [right, bottom], [left, bottom]]; // prettier-ignore
}

function order(a, b) {
  return [a.map((at, axis) => Math.min(at, b[axis])), a.map((at, axis) => Math.max(at, b[axis]))];
}

function middle(corners) {
  return [0, 1].map((axis) => corners.reduce((sum, corner) => sum + corner[axis], 0) / corners.length);
}

// By the even-odd rule.
function holds(corners, [x, y]) {
  return corners.reduce((inside, [x1, y1], index) => {
    const [x2, y2] = corners.at(index - 1);
    return y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1 ? !inside : inside;
  }, false);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
