// The file to begin with: chosen, or dropped anywhere on the page.

export class PictureInput {
  constructor(input, place, onChoose) {
    this.input = input;
    input.addEventListener("change", () => input.files.length && onChoose(input.files[0]));
    const holdsFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
    const mark = (isOver) => place.toggleAttribute("data-dropping", isOver);
    document.addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault(); // the browser would leave the page for the file
      mark(true);
    });
    document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || mark(false));
    document.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      mark(false);
      onChoose(event.dataTransfer.files[0]);
    });
  }

  // The same file may be chosen again.
  clear() {
    this.input.value = "";
  }
}

// `size`: (width, height) as it is shown, upright; [0, 0] if this browser does not read the file. The server may.
export async function readFile(file) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  const size = await new Promise((resolve) => {
    image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
    image.onerror = () => resolve([0, 0]);
    image.src = url;
  });
  return { file, url, size, name: file.name, bytes: file.size };
}
