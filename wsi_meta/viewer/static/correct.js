"use strict";
// Corrections: false lesions, and missed ones that someone draws. Each change is saved at once.

WsiMeta.Corrections = class {
  constructor(source, { changed, refused }) {
    Object.assign(this, { source, changed, refused, all: [], revision: "", draft: null, readOnly: !source.live });
  }

  async load() {
    if (this.readOnly) return;
    const { corrections, revision, problem } = await this.source.corrections();
    Object.assign(this, { all: corrections, revision });
    if (problem) {
      this.readOnly = true;
      this.refused(problem);
    }
    this.changed();
  }

  // The correction that says a lesion is none: it covers the lesion's peak.
  denying(lesion) {
    return this.all.find((one) => one.kind === "false" && WsiMeta.isInside(lesion.peak_x + 0.5, lesion.peak_y + 0.5, one.polygons));
  }

  async toggle(lesion) {
    const denying = this.denying(lesion);
    const others = this.all.filter((one) => one !== denying);
    await this.save(denying ? others : [...others, { kind: "false", polygons: lesion.polygons }]);
  }

  async remove(correction) {
    await this.save(this.all.filter((one) => one !== correction));
  }

  begin() {
    if (this.readOnly) return;
    this.draft = [];
    this.changed();
  }

  add(x, y) {
    this.draft.push(x, y);
    this.changed();
  }

  giveUp() {
    this.draft = null;
    this.changed();
  }

  async close() {
    const ring = [];
    for (let at = 0; at < this.draft.length; at += 2) {
      const [x, y] = this.draft.slice(at, at + 2);
      if (ring.at(-2) !== x || ring.at(-1) !== y) ring.push(x, y); // a double click is two clicks at one place
    }
    this.draft = null;
    if (ring.length >= 6) await this.save([...this.all, { kind: "missed", polygons: [[ring]] }]);
    else this.changed();
  }

  async save(corrections) {
    if (this.readOnly) return;
    const before = this.all;
    this.all = corrections;
    this.changed();
    try {
      const saved = await this.source.save(corrections, this.revision);
      this.revision = saved.revision;
      this.changed(true);
    } catch (error) {
      this.all = before;
      this.refused(`Not saved: ${error.message}`);
      this.changed();
    }
  }
};
