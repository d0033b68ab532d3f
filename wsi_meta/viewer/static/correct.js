"use strict";
// Corrections: false lesions, and missed ones that someone draws. Each change is saved at once, one after the other: what is
// shown is what was saved last, with the changes that are on their way.

WsiMeta.Corrections = class {
  constructor(source, slide, { changed, refused }) {
    Object.assign(this, { source, slide, changed, refused, all: [], saved: [], waiting: [], revision: "", draft: null, readOnly: !source.live });
    this.last = Promise.resolve();
  }

  async load() {
    if (this.readOnly) return;
    const { corrections, revision, problem } = await this.source.corrections();
    Object.assign(this, { all: corrections, saved: corrections, revision });
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
    await (denying ? this.remove(denying) : this.append({ kind: "false", polygons: lesion.polygons }));
  }

  async remove(correction) {
    await this.save((all) => all.filter((one) => one !== correction));
  }

  async append(correction) {
    await this.save((all) => [...all, correction]);
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
    if (ring.length >= 6) await this.append({ kind: "missed", polygons: [[ring]] });
    else this.changed();
  }

  // Save a change of the list once the ones before it are: each makes the revision that the next one names.
  async save(change) {
    if (this.readOnly) return;
    this.waiting.push(change);
    this.show();
    this.last = this.last.catch(() => {}).then(() => this.send(change));
    await this.last;
  }

  async send(change) {
    const wanted = change(this.saved);
    let done = false;
    try {
      const { revision } = await this.source.save(wanted, this.revision, this.slide);
      Object.assign(this, { saved: wanted, revision });
      done = true;
    } catch (error) {
      this.refused(`Not saved: ${error.message}`);
    }
    this.waiting = this.waiting.filter((one) => one !== change);
    this.show(done && !this.waiting.length);
  }

  show(saved = false) {
    this.all = this.waiting.reduce((all, change) => change(all), this.saved);
    this.changed(saved);
  }
};
