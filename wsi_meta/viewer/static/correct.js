"use strict";
// Corrections: false lesions, and missed ones that someone draws. Each change is saved at once, one after the other: what is
// shown is what was saved last, with the changes that are on their way. A change is made of the list that it finds, so that it
// can be made again of a list that someone else has changed.

const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);

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

  // Take over what someone else has saved; a change that is on its way does so itself.
  async refresh() {
    if (this.readOnly) return;
    const { revision: before } = this;
    const { corrections, revision, problem } = await this.source.corrections();
    if (problem || this.waiting.length || before !== this.revision || before === revision) return;
    Object.assign(this, { saved: corrections, revision });
    this.show();
  }

  // Whether a correction of a list says that a lesion is none: it covers the lesion's peak.
  isFalse(lesion, all = this.all) {
    return all.some((one) => this.denies(one, lesion));
  }

  denies(one, lesion) {
    return one.kind === "false" && WsiMeta.isInside(lesion.peak_x + 0.5, lesion.peak_y + 0.5, one.polygons);
  }

  async toggle(lesion) {
    const denied = { kind: "false", polygons: lesion.polygons };
    const unmark = (all) => all.filter((one) => !this.denies(one, lesion));
    const mark = (all) => (this.isFalse(lesion, all) ? all : [...all, denied]);
    await this.save(this.isFalse(lesion) ? unmark : mark);
  }

  // By what it is: the list may have come anew.
  async remove(correction) {
    await this.save((all) => all.filter((one) => !isSame(one, correction)));
  }

  // An outline that was closed before becomes the draft again where it cannot be saved: that is waited for.
  async begin() {
    await this.last.catch(() => {});
    if (this.readOnly || this.draft) return;
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
    if (ring.length < 6) {
      this.draft = ring;
      this.changed();
      return this.refused("An outline needs three corners: click more, or Esc gives it up");
    }
    this.draft = null;
    const missed = { kind: "missed", polygons: [[ring]] };
    const add = (all) => (all.some((one) => isSame(one, missed)) ? all : [...all, missed]); // an answer may be lost, not the outline
    const keep = () => { this.draft = ring; };
    await this.save(add, keep);
  }

  // Save a change of the list once the ones before it are: each makes the revision that the next one names. `failed` is called
  // where it is not saved.
  async save(change, failed = () => {}) {
    if (this.readOnly) return;
    this.waiting.push(change);
    this.show();
    this.last = this.last.catch(() => {}).then(() => this.send(change, failed));
    await this.last;
  }

  async send(change, failed) {
    let done = false;
    try {
      await this.put(change, this).catch((error) => this.putAnew(change, error));
      done = true;
    } catch (error) {
      failed();
      this.refused(`Not saved: ${error.message}`);
    }
    this.waiting = this.waiting.filter((one) => one !== change);
    this.show(done && !this.waiting.length);
  }

  async put(change, { saved: before, revision: named }) {
    const saved = change(before);
    const { revision } = await this.source.save(saved, named, this.slide);
    Object.assign(this, { saved, revision });
  }

  // Where the list was refused because someone else has changed it meanwhile, save the same change of theirs.
  async putAnew(change, error) {
    if (error.status !== 409) throw error;
    const { corrections, revision, problem } = await this.source.corrections();
    if (problem || revision === this.revision) throw error;
    await this.put(change, { saved: corrections, revision });
  }

  show(saved = false) {
    this.all = this.waiting.reduce((all, change) => change(all), this.saved);
    this.changed(saved);
  }
};
