// Buttons over the picture.

const byId = (id) => document.getElementById(id);

export class Tools {
  constructor(view) {
    this.view = view;
    byId("zoom-in").addEventListener("click", () => view.zoomBy(1.6));
    byId("zoom-out").addEventListener("click", () => view.zoomBy(1 / 1.6));
    byId("fit").addEventListener("click", () => view.showAll());
    byId("full").addEventListener("click", () => toggleFullScreen());
    byId("full").hidden = !document.fullscreenEnabled;
    byId("repeat").addEventListener("click", () => this.toggleRepeat());
    this.setSeamless("none");
  }

  show(shown) {
    byId("tools").hidden = !shown;
  }

  // Offers to repeat a picture that continues into itself.
  setSeamless(axes) {
    this.axes = axes;
    byId("repeat").hidden = axes === "none";
    byId("repeat").setAttribute("aria-pressed", "false");
  }

  // Two pictures beside each other are not repeated; afterwards the one is as it was.
  setPaired(isPaired) {
    if (byId("repeat").getAttribute("aria-pressed") === "true") this.view.setRepeat(isPaired ? "none" : this.axes);
    byId("repeat").hidden = isPaired || this.axes === "none";
  }

  toggleRepeat() {
    const pressed = byId("repeat").getAttribute("aria-pressed") === "true";
    byId("repeat").setAttribute("aria-pressed", String(!pressed));
    this.view.setRepeat(pressed ? "none" : this.axes);
  }
}

function toggleFullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else byId("frame").requestFullscreen();
}
