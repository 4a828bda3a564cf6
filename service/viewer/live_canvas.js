// The canvas while a job runs: approximate colours below, decoded pixels above.

const LONGEST_SIDE = 2048;

export class LiveCanvas {
  constructor(request, tilePx) {
    this.widthPx = request.width_px;
    this.heightPx = request.height_px;
    this.element = document.createElement("div");
    this.element.className = "canvas";
    this.element.setAttribute("role", "img");
    this.element.setAttribute("aria-label", `The unfinished picture: ${request.prompt}`);
    this.element.style.setProperty("--columns", this.widthPx / tilePx);
    this.element.style.setProperty("--rows", this.heightPx / tilePx);
    this.layers = { denoise: null, decode: null };
    this.drawn = Promise.resolve();
  }

  // JPEGs are decoded side by side and drawn in the order in which they came.
  paint(previews) {
    for (const { data, image } of previews) {
      const decoded = createImageBitmap(image).catch(() => null);
      this.drawn = this.drawn.then(async () => this.draw(data, await decoded));
    }
    return this.drawn;
  }

  draw(data, bitmap) {
    if (!bitmap) return;
    // A layer is as fine as its previews, so that the browser smooths across cells and not each alone.
    const layer = (this.layers[data.phase] ??= this.addLayer(Math.min(bitmap.width / data.width_px, bitmap.height / data.height_px)));
    const { width, height } = layer.canvas;
    const left = (data.left_px * width) / this.widthPx;
    const top = (data.top_px * height) / this.heightPx;
    layer.drawImage(bitmap, left, top, (data.width_px * width) / this.widthPx, (data.height_px * height) / this.heightPx);
    bitmap.close();
    this.element.dataset.painted = Number(this.element.dataset.painted ?? 0) + 1;
  }

  addLayer(scale) {
    const most = Math.min(scale, LONGEST_SIDE / Math.max(this.widthPx, this.heightPx));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(this.widthPx * most));
    canvas.height = Math.max(1, Math.round(this.heightPx * most));
    if (this.layers.decode) this.element.prepend(canvas);
    else this.element.append(canvas);
    return canvas.getContext("2d");
  }
}
