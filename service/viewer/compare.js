// Parent and child in one deep zoom, on both sides of a line.

import { fetchJob } from "./api.js";
import { Divider } from "./divider.js";
import { parentOf } from "./lineage.js";
import { PairView } from "./pair_view.js";
import { placeSource } from "./placement.js";

const byId = (id) => document.getElementById(id);

export class Compare {
  // `onToggle` is told before two pictures are shown, and after.
  constructor(view, onToggle) {
    Object.assign(this, { view, onToggle, job: null, relatives: [] });
    this.pair = new PairView(view);
    this.button = byId("compare");
    this.choice = byId("compare-with");
    this.divider = new Divider(byId("divider"), {
      onMove: () => this.pair.divide(this.divider.percent / 100),
      onEscape: () => this.leave(),
    });
    this.button.addEventListener("click", () => (this.isOn ? this.leave() : this.begin()));
    this.choice.addEventListener("change", () => this.show());
  }

  get isOn() {
    return this.button.getAttribute("aria-pressed") === "true";
  }

  // For a job whose picture is shown.
  offer(job) {
    this.job = job;
    this.relatives = listRelatives(job);
    this.button.hidden = !this.relatives.length;
    this.choice.replaceChildren(...this.relatives.map(({ name }, index) => new Option(name, index)));
  }

  withdraw() {
    if (this.isOn) this.leave();
    this.job = null;
    this.button.hidden = true;
    this.note("");
  }

  async begin() {
    this.onToggle(true);
    this.button.setAttribute("aria-pressed", "true");
    this.divider.percent = 50;
    if (await this.show()) this.divider.element.focus({ preventScroll: true });
  }

  leave() {
    const isHeld = byId("pair").contains(document.activeElement) || document.activeElement === this.choice;
    this.close();
    this.button.setAttribute("aria-pressed", "false");
    this.choice.hidden = true;
    if (isHeld) this.button.focus({ preventScroll: true });
    this.onToggle(false);
  }

  close() {
    this.pair.close();
    this.wanted = null;
    byId("pair").hidden = true;
    this.note("");
  }

  // Whether both are there.
  async show() {
    this.close();
    const relative = (this.wanted = this.relatives[this.choice.value]);
    this.offerOthers(relative);
    try {
      const record = await fetchJob(relative.id);
      if (record.status !== "succeeded") throw new Error(`there is no picture, the job is ${record.status}`);
      if (this.wanted !== relative || !(await this.pair.open(relative.id, place(this.job, record, relative.isParent), relative.isParent))) return false;
      this.showDivider(relative);
      return true;
    } catch (refusal) {
      if (this.wanted === relative) this.note(`${relative.name}: ${refusal.message}`);
      return false;
    }
  }

  // In place of the name of the other picture.
  offerOthers({ isParent }) {
    this.choice.hidden = this.relatives.length < 2;
    this.choice.dataset.side = isParent ? "left" : "right";
    byId("pair-left").hidden = isParent && !this.choice.hidden;
    byId("pair-right").hidden = !isParent && !this.choice.hidden;
  }

  showDivider({ name, isParent }) {
    const child = isParent ? "Child" : name;
    byId("pair-right").textContent = child;
    this.divider.setNames("parent", child.toLowerCase());
    byId("pair").hidden = false;
    this.divider.set(this.divider.percent);
  }

  note(text) {
    byId("pair-note").textContent = text;
  }
}

function listRelatives({ request, children = [] }) {
  const parent = parentOf(request);
  const named = children.map((id, index) => ({ id, isParent: false, name: children.length > 1 ? `Child ${index + 1}` : "Child" }));
  return parent ? [{ id: parent, isParent: true, name: "Parent" }, ...named] : named;
}

// Of the other picture, in widths of the job's own.
function place(job, other, otherIsParent) {
  const [parent, child] = otherIsParent ? [other, job] : [job, other];
  const { width_px: wide, height_px: high } = parent.request;
  const { width_px: width, height_px: height } = child.request;
  const isBegunWithIt = child.request.source?.job === parent.id;
  const on = isBegunWithIt ? placeSource(child.request, [wide, high]) : { left: 0, top: 0, width, height };
  if (otherIsParent) return { x: on.left / width, y: on.top / width, width: on.width / width };
  return { x: -on.left / on.width, y: -on.top / on.width, width: width / on.width };
}
