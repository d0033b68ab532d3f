"use strict";
// The list of heatmaps, highest score first, then slides that have none.
(async () => {
  const answer = await fetch("/list");
  const { stores, left_out: leftOut, report } = await answer.json();
  stores.sort((one, other) => (other.score ?? -1) - (one.score ?? -1) || one.name.localeCompare(other.name));
  document.getElementById("count").textContent = stores.length;
  const told = document.getElementById("left_out");
  told.hidden = !leftOut.length;
  told.textContent = `${leftOut.length} more ${leftOut.length === 1 ? "slide has" : "slides have"} no finished heatmap: see the end of the list.`;
  document.getElementById("report").hidden = !report;
  const body = document.querySelector("#stores tbody");
  const cell = (row, text, kind) => {
    const made = row.insertCell();
    made.textContent = text ?? "";
    if (kind) made.className = kind;
    return made;
  };
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
  }
  document.getElementById("find").addEventListener("input", (event) => {
    const sought = event.target.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(sought);
  });
})();
