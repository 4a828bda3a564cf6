// One picture of a form: chosen or dropped, shown with its name, and removed again.

import * as words from "./words.js";

const byId = (id) => document.getElementById(id);

// The form is told of a change as of one in any field: by an "input" event.
export class PictureInput {
  // The ids of its elements begin with `name`. A file is dropped anywhere on `area`, but not on that of another.
  constructor(name, area) {
    Object.assign(this, { name, picture: null });
    this.place = this.find("drop");
    this.input = this.place.querySelector("input");
    this.input.addEventListener("change", () => this.input.files.length && this.choose(this.input.files[0]));
    this.find("remove").addEventListener("click", () => this.remove());
    this.takeDrops(area);
  }

  find(part) {
    return byId(`${this.name}-${part}`);
  }

  takeDrops(area) {
    const holdsFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
    const mark = (isOver) => this.place.toggleAttribute("data-dropping", isOver);
    area.addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      mark(!event.defaultPrevented);
      event.preventDefault(); // the browser would leave the page for the file
    });
    area.addEventListener("dragleave", ({ relatedTarget }) => area.contains(relatedTarget) || mark(false));
    area.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      mark(false);
      if (!event.defaultPrevented) this.choose(event.dataTransfer.files[0]);
      event.preventDefault();
    });
  }

  async choose(file) {
    const turn = (this.turn = {});
    const picture = await readFile(file);
    if (this.turn === turn) this.set(picture);
    else URL.revokeObjectURL(picture.url);
  }

  remove() {
    this.set(null);
    this.input.focus();
  }

  set(picture) {
    if (this.picture?.file) URL.revokeObjectURL(this.picture.url);
    this.turn = null;
    this.picture = picture;
    this.input.value = ""; // the same file may be chosen again
    this.place.hidden = Boolean(picture);
    this.find("chosen").hidden = !picture;
    if (picture) this.show(picture);
    this.input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  show({ url, name, size, bytes }) {
    this.place.closest("details").open = true;
    const image = this.find("image");
    image.src = url;
    image.hidden = !size[0];
    const facts = [size[0] && words.size(...size), bytes && words.bytes(bytes)].filter(Boolean).join(" · ");
    this.find("name").textContent = name;
    this.find("facts").textContent = facts;
  }
}

// `size`: (width, height) as it is shown, upright; [0, 0] if this browser does not read the file. The server may.
async function readFile(file) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  const size = await new Promise((resolve) => {
    image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
    image.onerror = () => resolve([0, 0]);
    image.src = url;
  });
  return { file, url, size, name: file.name, bytes: file.size };
}
