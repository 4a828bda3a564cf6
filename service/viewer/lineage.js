// Where a picture comes from, and what was made of it.

const byId = (id) => document.getElementById(id);

export const parentOf = (request) => request.parent ?? request.source?.job;

export class Lineage {
  constructor(onOpen) {
    this.onOpen = onOpen;
  }

  draw({ request, children = [] }) {
    const parent = parentOf(request);
    const links = [];
    if (parent) links.push("from ", this.link(parent, "this picture"));
    if (children.length) {
      links.push(parent ? " · made of it: " : "Made of it: ");
      children.forEach((id, index) => links.push(index ? ", " : "", this.link(id, `picture ${index + 1}`)));
    }
    byId("lineage").replaceChildren(...links);
    byId("lineage").hidden = !links.length;
  }

  link(id, text) {
    const link = document.createElement("a");
    link.href = `?job=${encodeURIComponent(id)}`;
    link.textContent = text;
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.onOpen(id);
    });
    return link;
  }
}
