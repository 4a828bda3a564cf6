// Two pictures in one view, at the same place and zoom: one to the left of a line, the other to its right.

const { OpenSeadragon } = window;

export class PairView {
  constructor(view) {
    this.view = view;
    this.viewer = view.viewer;
    this.clip = this.clip.bind(this);
    this.share = 0.5;
  }

  // `place`: of the other picture, where the view's own is {x: 0, y: 0, width: 1}.
  // Whether it is still wanted when it has come.
  async open(jobId, place, otherIsLeft) {
    const own = this.view.image;
    const turn = (this.turn = {});
    const other = await this.view.addPicture(jobId, place);
    if (this.turn !== turn) {
      this.viewer.world.removeItem(other);
      return false;
    }
    this.other = other;
    [this.left, this.right] = otherIsLeft ? [other, own] : [own, other];
    this.view.setExtent(own.getBounds().getBoundingBox().union(other.getBounds().getBoundingBox()));
    for (const event of ["viewport-change", "resize"]) this.viewer.addHandler(event, this.clip);
    this.clip();
    return true;
  }

  // A share of the view's width.
  divide(share) {
    this.share = share;
    if (this.other) this.clip();
  }

  clip() {
    const { viewport } = this.viewer;
    const across = this.share * viewport.getContainerSize().x;
    const line = viewport.pointFromPixel(new OpenSeadragon.Point(across, 0), true).x;
    const [end, start] = [this.left, this.right].map((image) => columnAt(image, line));
    clipTo(this.left, 0, end);
    clipTo(this.right, start, this.right.getContentSize().x);
  }

  close() {
    this.turn = null;
    if (!this.other) return;
    for (const event of ["viewport-change", "resize"]) this.viewer.removeHandler(event, this.clip);
    this.viewer.world.removeItem(this.other);
    this.view.image?.setClip(null);
    this.other = this.left = this.right = null;
    this.view.setExtent(null);
  }
}

// Of the image's own pixels; within it.
function columnAt(image, line) {
  const { x, width } = image.getBounds(true);
  return Math.min(Math.max((line - x) / width, 0), 1) * image.getContentSize().x;
}

function clipTo(image, left, right) {
  image.setClip(new OpenSeadragon.Rect(left, 0, right - left, image.getContentSize().y));
}
