"use strict";
// The list of heatmaps, highest score first, then slides that have none. It follows the folder.
(() => {
  const byId = (id) => document.getElementById(id);
  const body = document.querySelector("#stores tbody");
  let shown = "";

  const cell = (row, text, kind) => {
    const made = row.insertCell();
    made.textContent = text ?? "";
    if (kind) made.className = kind;
    return made;
  };

  const find = () => {
    const sought = byId("find").value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(sought);
  };

  const show = ({ stores, left_out: leftOut, report }) => {
    stores.sort((one, other) => (other.score ?? -1) - (one.score ?? -1) || one.name.localeCompare(other.name));
    byId("count").textContent = stores.length;
    byId("left_out").hidden = !leftOut.length;
    byId("left_out").textContent = `${leftOut.length} more ${leftOut.length === 1 ? "slide has" : "slides have"} no finished heatmap: see the end of the list.`;
    byId("report").hidden = !report;
    const held = document.activeElement?.href; // the focus stays on its heatmap
    body.replaceChildren();
    for (const store of [...stores, ...leftOut]) {
      const row = body.insertRow();
      const name = cell(row, "");
      if (store.problem) {
        name.textContent = store.name;
        const told = cell(row, store.problem, "warm");
        told.colSpan = 5;
        continue;
      }
      const link = document.createElement("a");
      link.href = `/s/${store.key}`;
      link.textContent = store.name;
      name.append(link);
      cell(row, store.told, "number");
      cell(row, store.state, store.state === "complete" ? "" : "warm");
      cell(row, store.lesions);
      cell(row, store.verdict);
      cell(row, store.mm, "number");
      if (held === link.href) link.focus({ preventScroll: true });
    }
    find();
  };

  // Asked for again and again, and so rarely that many heatmaps cost a twentieth of the server's time.
  const look = async () => {
    const begun = performance.now();
    let trouble = "";
    if (!document.hidden) {
      try {
        const answer = await fetch("/list");
        if (!answer.ok) throw new Error(answer.statusText);
        const text = await answer.text();
        if (text !== shown) show(JSON.parse(text));
        shown = text;
      } catch (error) {
        trouble = error instanceof TypeError ? "No answer from wsi-meta view; start it again and load this page anew" : error.message;
      }
      byId("trouble").textContent = trouble;
      byId("trouble").hidden = !trouble;
    }
    clearTimeout(next);
    next = setTimeout(look, Math.max(5000, 20 * (performance.now() - begun)));
  };

  let next;
  byId("find").addEventListener("input", find);
  document.addEventListener("visibilitychange", () => document.hidden || look());
  look();
})();
