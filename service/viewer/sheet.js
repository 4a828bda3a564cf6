// The empty sheet: the shape of the picture, its tiles and regions, before there is a job.

import { drawShape, toShares } from "./region_shapes.js";
import * as words from "./words.js";

const byId = (id) => document.getElementById(id);

export function drawSheet(request, tilePx, note) {
  const { width_px: width, height_px: height } = request;
  if (!(width > 0 && height > 0)) return;
  const sheet = byId("sheet");
  sheet.style.setProperty("--ratio", width / height);
  sheet.style.setProperty("--columns", Math.max(width / tilePx, 1));
  sheet.style.setProperty("--rows", Math.max(height / tilePx, 1));
  drawRegions(request.regions ?? [], [width, height]);
  byId("sheet-size").textContent = words.size(width, height);
  byId("sheet-note").textContent = note ?? plan(width, height, tilePx);
  byId("sheet-place").hidden = false;
}

function drawRegions(regions, size) {
  const svg = byId("sheet-regions");
  svg.setAttribute("viewBox", `0 0 ${size.join(" ")}`);
  svg.replaceChildren(...regions.flatMap(({ shape }, index) => drawShape(toShares(shape, size), index, size)));
}

export function hideSheet() {
  byId("sheet-place").hidden = true;
}

function plan(width, height, tilePx) {
  const tiles = Math.ceil(width / tilePx) * Math.ceil(height / tilePx);
  const megapixels = (width * height) / 1e6;
  const area = megapixels < 10 ? megapixels.toFixed(1) : words.count(Math.round(megapixels));
  return `${area} megapixels, ${tiles === 1 ? "one tile" : `${words.count(tiles)} tiles`}`;
}
