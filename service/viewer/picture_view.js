// One zoomable view: the live canvas, then the deep zoom in the same place.

import { fetchPyramid, tileUrl } from "./api.js";

const { OpenSeadragon } = window;
const FADE_MS = 700;

export class PictureView {
  constructor(element) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.viewer = OpenSeadragon({
      element,
      // The canvas drawer also takes tiles from other hosts, and works without WebGL.
      drawer: "canvas",
      showNavigationControl: false,
      animationTime: still ? 0 : 0.5,
      blendTime: still ? 0 : 0.2,
      immediateRender: still,
      minZoomImageRatio: 0.4,
      maxZoomPixelRatio: 4,
      visibilityRatio: 0.5,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    });
    // After a resize the whole picture is shown again, unless the user had zoomed or moved it.
    for (const moved of ["canvas-drag", "canvas-scroll", "canvas-pinch", "canvas-key", "canvas-double-click"]) {
      this.viewer.addHandler(moved, () => (this.isMoved = true));
    }
    // OpenSeadragon restores its zoom after this event, so the whole picture is shown after that.
    this.viewer.addHandler("after-resize", () => setTimeout(() => this.isMoved || this.showAll(true)));
    this.viewer.canvas.setAttribute("aria-label", "Picture. Arrow keys move, plus and minus zoom, zero shows all.");
  }

  // Opens an empty picture of the right shape, on which a live canvas may lie.
  async open(widthPx, heightPx) {
    this.ratio = heightPx / widthPx;
    this.setBusy(true);
    this.image = null;
    this.live = null;
    this.extent = null;
    const opened = new Promise((resolve) => this.viewer.addOnceHandler("open", resolve));
    this.viewer.clearOverlays();
    this.setRepeat("none");
    this.viewer.open(emptySource(widthPx, heightPx));
    await opened;
    this.showAll(true);
  }

  showLive(canvas) {
    this.live = canvas.element;
    this.viewer.addOverlay({ element: this.live, location: this.bounds(1) });
  }

  // Puts the deep zoom below the live canvas, which fades out once all visible tiles are loaded.
  async showResult(jobId) {
    const image = await this.addPicture(jobId, { x: 0, y: 0, width: 1 });
    this.image = image;
    await loaded(image);
    if (this.image !== image) return;
    this.setBusy(false);
    this.fadeLive();
  }

  // Where 1 is the width of the picture that was opened.
  async addPicture(jobId, { x, y, width }) {
    const pyramid = await fetchPyramid(jobId);
    const tileSource = { ...pyramid, minLevel: 0, getTileUrl: (level, column, row) => tileUrl(jobId, level, column, row) };
    return new Promise((resolve, reject) =>
      this.viewer.addTiledImage({
        tileSource,
        x,
        y,
        width,
        success: ({ item }) => resolve(item),
        error: ({ message }) => reject(new Error(message)),
      }),
    );
  }

  // Repeats the picture along its seamless axes.
  setRepeat(axes) {
    const [across, down] = [axes === "x" || axes === "both", axes === "y" || axes === "both"];
    this.viewer.viewport.wrapHorizontal = across;
    this.viewer.viewport.wrapVertical = down;
    this.repeated = [across ? 2 : 1, down ? 2 : 1];
    if (!this.image) return;
    this.image.wrapHorizontal = across;
    this.image.wrapVertical = down;
    this.viewer.forceRedraw();
    this.showAll();
  }

  showAll(immediately = false) {
    if (!this.ratio) return;
    const [columns, rows] = this.repeated;
    this.isMoved = false;
    this.viewer.viewport.fitBounds(this.extent ?? new OpenSeadragon.Rect(0, 0, columns, this.ratio * rows), immediately);
  }

  // What "all" is, if not the picture alone; where the user has zoomed or moved it, it stays so.
  setExtent(rectangle) {
    this.extent = rectangle;
    if (this.isMoved) this.viewer.viewport.applyConstraints();
    else this.showAll();
  }

  zoomBy(factor) {
    this.isMoved = true;
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  // Not busy: nothing more comes that would change what is shown.
  setBusy(busy) {
    this.viewer.element.setAttribute("aria-busy", String(busy));
  }

  bounds(width) {
    return new OpenSeadragon.Rect(0, 0, width, this.ratio * width);
  }

  fadeLive() {
    const live = this.live;
    if (!live) return;
    this.live = null;
    live.classList.add("gone");
    setTimeout(() => this.viewer.removeOverlay(live), FADE_MS);
  }
}

function emptySource(width, height) {
  const tileSize = Math.max(width, height);
  return { width, height, tileSize, minLevel: 0, maxLevel: 0, tileExists: () => false, getTileUrl: () => "" };
}

function loaded(image) {
  if (image.getFullyLoaded()) return Promise.resolve();
  return new Promise((resolve) =>
    image.addHandler("fully-loaded-change", function onChange({ fullyLoaded }) {
      if (!fullyLoaded) return;
      image.removeHandler("fully-loaded-change", onChange);
      resolve();
    }),
  );
}
