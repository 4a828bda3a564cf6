// Shapes of regions: their geometry, and how they are drawn in the picture's own pixels.
// Points are shares of the picture's sides, [across, down], from the top left corner.

const SVG = "http://www.w3.org/2000/svg";

// From pixels, as a request has them; null for a mask picture.
export function toShares({ rectangle, polygon }, size) {
  const share = (point) => point.map((at, axis) => at / size[axis]);
  if (polygon) return { kind: "polygon", points: polygon.map(share) };
  if (!rectangle) return null;
  const { left_px: left, top_px: top, width_px: width, height_px: height } = rectangle;
  return { kind: "rectangle", points: [share([left, top]), share([left + width, top + height])] };
}

export function toPixels({ kind, points }, size) {
  const corners = points.map((point) => point.map((at, axis) => Math.round(at * size[axis])));
  if (kind === "polygon") return { polygon: corners };
  const [[left_px, top_px], [right, bottom]] = corners;
  return { rectangle: { left_px, top_px, width_px: Math.max(right - left_px, 1), height_px: Math.max(bottom - top_px, 1) } };
}

export function cornersOf({ kind, points }) {
  if (kind === "polygon") return points;
  const [[left, top], [right, bottom]] = points;
  return [
    [left, top],
    [right, top],
    [right, bottom],
    [left, bottom],
  ];
}

// Two opposite corners, as [top left, bottom right].
export function order(a, b) {
  return [a.map((at, axis) => Math.min(at, b[axis])), a.map((at, axis) => Math.max(at, b[axis]))];
}

// By the even-odd rule.
export function holds(corners, [x, y]) {
  return corners.reduce((inside, [x1, y1], index) => {
    const [x2, y2] = corners.at(index - 1);
    return y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1 ? !inside : inside;
  }, false);
}

// The outline and the number of one region.
export function drawShape(region, index, size, chosen = false) {
  const corners = cornersOf(region);
  const shape = drawLine("polygon", corners, size, chosen ? "region-shape chosen" : "region-shape");
  const [x, y] = placeLabel(corners);
  const label = create("text", { class: "region-label", x: x * size[0], y: y * size[1], "font-size": hundredth(size) * 4 });
  label.textContent = index + 1;
  for (const each of [shape, label]) colour(each, index);
  return [shape, label];
}

// Between the middle and the first corner: numbers of regions within each other lie apart.
function placeLabel(corners) {
  const middle = [0, 1].map((axis) => corners.reduce((sum, corner) => sum + corner[axis], 0) / corners.length);
  return middle.map((at, axis) => (at + corners[0][axis]) / 2);
}

export function drawLine(kind, points, [width, height], name) {
  return create(kind, { class: name, points: points.map(([x, y]) => `${x * width},${y * height}`).join(" ") });
}

export function drawDot([x, y], size, name, radius) {
  return create("circle", { class: name, cx: x * size[0], cy: y * size[1], r: hundredth(size) * radius });
}

export function colour(element, index) {
  element.style.setProperty("--hue", (20 + index * 137.5) % 360); // the golden angle: any few differ
}

// Of the longer side.
function hundredth(size) {
  return Math.max(...size) / 100;
}

function create(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
