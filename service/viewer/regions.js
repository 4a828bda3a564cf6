// Regions of the request: the list with their prompts and numbers, and the area where they are drawn.

import { RegionArea } from "./region_area.js";
import { colour, toPixels, toShares } from "./region_shapes.js";

const MOST = 16;
const HINTS = {
  rectangle: "Drag to draw a rectangle.",
  polygon: "Tap each corner; tap the first again to close.",
  move: "Drag a region to move it, a corner to reshape it.",
};
const SIDES = { left_px: [0, 0], top_px: [0, 1], width_px: [1, 0], height_px: [1, 1] };
const find = (root, name) => root.querySelector(`[data-part="${name}"]`);

export class RegionList {
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.items = [];
    this.selected = null;
    this.area = new RegionArea(root.querySelector("#region-area"), {
      onDraw: (shape) => this.add(shape).querySelector("[data-part=prompt]").focus(),
      onEdit: (item) => this.showNumbers(item),
      onSelect: (item) => this.select(item),
      onDraft: (corners) => this.showDraft(corners),
    });
    for (const radio of root.querySelectorAll("[name=region-tool]")) {
      radio.addEventListener("change", () => this.setTool(radio.value));
    }
    root.querySelector("#add-rectangle").addEventListener("click", () => this.addInMiddle("rectangle"));
    root.querySelector("#add-polygon").addEventListener("click", () => this.addInMiddle("polygon"));
    root.querySelector("#close-polygon").addEventListener("click", () => this.area.finishPolygon());
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.area.cancel();
    });
    this.size = [1024, 1024];
    this.setTool("rectangle");
  }

  setTool(tool) {
    this.tool = tool;
    this.area.setTool(tool);
    this.refresh();
  }

  // Regions keep their place in the picture, whatever its size.
  setSize(width, height) {
    const [before, above] = this.size;
    if (!(width > 0 && height > 0) || (width === before && height === above)) return;
    this.size = [width, height];
    for (const item of this.items) this.showNumbers(item);
    this.refresh();
  }

  read() {
    return this.items.map((item) => this.readItem(item));
  }

  readItem(item) {
    const region = { prompt: find(item.row, "prompt").value.trim(), shape: toPixels(item, this.size) };
    for (const name of ["negative_prompt", "seed"]) {
      const value = find(item.row, name).value.trim();
      if (value) region[name] = value;
    }
    for (const name of ["weight", "feather_px"]) {
      const { value } = find(item.row, name);
      if (value) region[name] = Number(value);
    }
    return region;
  }

  // Copies those of a job; a mask picture is not at hand any more.
  fill({ regions = [], width_px: width, height_px: height }) {
    for (const item of this.items) item.row.remove();
    this.items = [];
    this.size = [width, height];
    const shapes = regions.map(({ shape }) => toShares(shape, this.size));
    regions.forEach((region, index) => {
      if (!shapes[index]) return;
      const row = this.add(shapes[index]);
      for (const name of ["prompt", "negative_prompt", "weight", "feather_px", "seed"]) {
        find(row, name).value = region[name] ?? "";
      }
    });
    const left = shapes.filter((shape) => !shape).length;
    this.root.querySelector("#refusal-regions").textContent = left ? `Regions with a mask picture are left out: ${left}` : "";
    if (regions.length) this.root.open = true;
    this.refresh();
  }

  add({ kind, points }) {
    const row = document.getElementById("region-row").content.firstElementChild.cloneNode(true);
    const item = { kind, points, row };
    find(row, kind === "polygon" ? "rectangle" : "polygon").remove();
    find(row, "remove").addEventListener("click", () => this.remove(item));
    row.addEventListener("focusin", () => this.select(item));
    row.addEventListener("input", ({ target }) => this.readNumbers(item, target));
    row.addEventListener("change", () => this.showNumbers(item));
    this.items.push(item);
    this.root.querySelector("#region-rows").append(row);
    this.select(item);
    this.showNumbers(item);
    this.changed();
    return row;
  }

  addInMiddle(kind) {
    const low = 0.25;
    const high = 0.75;
    const points = kind === "rectangle" ? [[low, low], [high, high]] : [[low, low], [high, low], [high, high], [low, high]]; // prettier-ignore
    const row = this.add({ kind, points });
    find(row, "more").open = true;
    find(row, "prompt").focus();
  }

  remove(item) {
    const next = item.row.nextElementSibling ?? item.row.previousElementSibling;
    item.row.remove();
    this.items = this.items.filter((each) => each !== item);
    if (this.selected === item) this.selected = null;
    (next ? find(next, "prompt") : this.root.querySelector("#add-rectangle")).focus();
    this.changed();
  }

  select(item) {
    this.selected = item;
    this.refresh();
  }

  // From fields to the area. What is half typed changes nothing yet.
  readNumbers(item, target) {
    const { part } = target.dataset;
    if (part === "corners") this.readCorners(item, target.value);
    else if (part in SIDES && target.value !== "") this.readSide(item, part, Number(target.value));
    this.refresh();
  }

  readSide(item, part, value) {
    const [end, axis] = SIDES[part];
    const [start, stop] = item.points.map((point) => [...point]);
    const share = value / this.size[axis];
    if (end) stop[axis] = start[axis] + share;
    else [start[axis], stop[axis]] = [share, stop[axis] - start[axis] + share];
    item.points = [start, stop];
  }

  readCorners(item, text) {
    const numbers = text.match(/\d+/g)?.map(Number) ?? [];
    if (numbers.length < 6 || numbers.length % 2) return;
    item.points = numbers.flatMap((x, index) => (index % 2 ? [] : [[x / this.size[0], numbers[index + 1] / this.size[1]]]));
  }

  // From the area to the fields.
  showNumbers(item) {
    const { rectangle, polygon } = toPixels(item, this.size);
    if (polygon) find(item.row, "corners").value = polygon.map((corner) => corner.join(",")).join(" ");
    for (const [part, value] of Object.entries(rectangle ?? {})) find(item.row, part).value = value;
  }

  showDraft(corners) {
    this.root.querySelector("#close-polygon").hidden = corners < 3;
  }

  changed() {
    this.refresh();
    this.onChange();
  }

  refresh() {
    const full = this.items.length >= MOST;
    this.area.full = full;
    this.area.draw(this.items, this.selected, this.size);
    for (const id of ["#add-rectangle", "#add-polygon"]) this.root.querySelector(id).disabled = full;
    const hint = this.root.querySelector("#region-hint");
    const text = full && this.tool !== "move" ? `At most ${MOST} regions.` : HINTS[this.tool];
    if (hint.textContent !== text) hint.textContent = text; // a screen reader says it once
    this.root.querySelector("#region-count").textContent = this.items.length ? `(${this.items.length})` : "";
    this.items.forEach(({ row }, index) => this.number(row, index + 1));
  }

  number(row, number) {
    const badge = find(row, "number");
    badge.textContent = number;
    colour(badge, number - 1);
    find(row, "prompt").setAttribute("aria-label", `Prompt of region ${number}`);
    find(row, "remove").setAttribute("aria-label", `Remove region ${number}`);
    row.toggleAttribute("data-chosen", this.items[number - 1] === this.selected);
  }

  // Shows an error of `regions.0.shape.rectangle.width_px` and the like.
  showRefusal(field, allowed) {
    const [, index, rest] = field.match(/^regions(?:\.(\d+)(?:\.(.+))?)?$/) ?? [];
    const item = this.items[index];
    const line = this.root.querySelector("#refusal-regions");
    const name = item ? `Region ${Number(index) + 1}${rest ? `, ${rest.split(".").filter((part) => part !== "shape").join(" ")}` : ""}: ` : "";
    line.textContent += `${line.textContent ? " " : ""}${name}${allowed}`;
    this.root.open = true;
    if (!item) return true;
    const parts = rest?.split(".") ?? [];
    const input = parts.includes("polygon") ? find(item.row, "corners") : find(item.row, parts.at(-1)) ?? find(item.row, "prompt");
    const shown = input.matches("input") ? input : find(item.row, "left_px");
    if (shown !== find(item.row, "prompt")) find(item.row, "more").open = true;
    shown.setAttribute("aria-invalid", "true");
    shown.setAttribute("aria-describedby", line.id);
    return true;
  }
}
