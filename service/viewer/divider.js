// A line across the view that is moved along it: by pointer, finger or keyboard.

const KEYS = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 };

export class Divider {
  constructor(element, { onMove, onEscape }) {
    Object.assign(this, { element, onMove });
    element.addEventListener("pointerdown", (event) => this.begin(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return onEscape();
      if (!(event.key in KEYS)) return;
      event.preventDefault();
      this.set(this.percent + KEYS[event.key]);
    });
    this.percent = 50;
  }

  setNames(left, right) {
    this.names = [left, right];
    this.element.setAttribute("aria-label", `Divider between ${left} and ${right}`);
  }

  // Per cent of the view's width, from its left edge.
  set(percent) {
    this.percent = Math.min(Math.max(percent, 0), 100);
    const shown = Math.round(this.percent);
    this.element.style.setProperty("--at", this.percent);
    this.element.setAttribute("aria-valuenow", shown);
    this.element.setAttribute("aria-valuetext", `${this.names[0]} ${shown} %, ${this.names[1]} ${100 - shown} %`);
    this.onMove();
  }

  begin(event) {
    if (event.button !== 0) return;
    event.preventDefault(); // no text is selected
    this.element.setPointerCapture(event.pointerId);
    this.element.focus({ preventScroll: true });
    this.grip = event.clientX - this.left(this.percent);
  }

  move(event) {
    if (!this.element.hasPointerCapture(event.pointerId)) return;
    const box = this.element.parentElement.getBoundingClientRect();
    this.set(((event.clientX - this.grip - box.left) / box.width) * 100);
  }

  // On the screen.
  left(percent) {
    const box = this.element.parentElement.getBoundingClientRect();
    return box.left + (box.width * percent) / 100;
  }
}
