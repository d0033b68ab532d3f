"use strict";
// The page of one heatmap.
(() => {
  const source = WsiMeta.source();
  const byId = (id) => document.getElementById(id);
  const view = { layer: "probability", opacity: 0.7, threshold: 0.5, shown: true, outlined: true, hidden: true, selected: null };
  const over = document.createElement("canvas");
  const veil = document.createElement("canvas");
  const GROWN = 412; // the server's answer where the map is another one by now
  let facts, values, viewer, picture, masks, found, outlines, corrections, told = "", trouble = "";
  let wanted = 0, next;

  // ---- drawing ------------------------------------------------------------------------------------------------------

  // Level-0 pixels of the left upper corner, and CSS pixels a level-0 pixel.
  const frame = () => {
    const bounds = viewer.viewport.getBounds(true);
    const scale = viewer.viewport.getContainerSize().x / (bounds.width * facts.grid.width);
    return { left: bounds.x * facts.grid.width, top: bounds.y * facts.grid.width, scale };
  };

  const fit = (canvas) => {
    const { x, y } = viewer.viewport.getContainerSize();
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(x * ratio), Math.round(y * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    return ratio;
  };

  // Draw the cells that are in view, sharp: cell borders are where they are on the slide, to the pixel of the screen.
  const drawCells = (context, cells, { left, top, scale }, ratio) => {
    const unit = scale * ratio;
    const cellsAPixel = 1 / (facts.grid.cell_l0 * unit);
    const pooled = cellsAPixel > 1 + 1e-9 ? 2 ** Math.ceil(Math.log2(cellsAPixel)) : 1;
    const squares = cells(pooled);
    const side = facts.grid.cell_l0 * pooled;
    const [width, height] = [context.canvas.width / ratio / scale, context.canvas.height / ratio / scale];
    const col = Math.max(0, Math.floor(left / side));
    const row = Math.max(0, Math.floor(top / side));
    const wide = Math.min(squares.width, Math.ceil((left + width) / side)) - col;
    const high = Math.min(squares.height, Math.ceil((top + height) / side)) - row;
    if (wide <= 0 || high <= 0) return;
    context.imageSmoothingEnabled = false;
    context.drawImage(
      squares, col, row, wide, high,
      (col * side - left) * unit, (row * side - top) * unit, wide * side * unit, high * side * unit,
    );
  };

  const stroke = (context, path, scale, ratio, colour, width, dash = []) => {
    const unit = scale;
    context.setLineDash(dash.map((part) => part / unit));
    context.lineJoin = "round";
    context.strokeStyle = "rgba(255,255,255,.9)";
    context.lineWidth = (width + 2) / unit;
    context.stroke(path);
    context.strokeStyle = colour;
    context.lineWidth = width / unit;
    context.stroke(path);
    context.setLineDash([]);
  };

  // The numbers of the largest lesions, as far as they find room: closer, more of them do.
  const drawNumbers = (context, { left, top, scale }, ratio) => {
    if (Math.min(facts.grid.width, facts.grid.height) * scale < 48) return; // they would hide the map, as overlay says
    const written = [];
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = "600 12px system-ui, sans-serif";
    context.lineJoin = "round";
    for (const lesion of found.lesions.slice(0, 60)) {
      const x = (lesion.corner[0] - left) * scale + 4;
      const y = (lesion.corner[1] - top) * scale + 4;
      const box = { left: x - 2, top: y - 11, right: x + 2 + context.measureText(lesion.lesion).width, bottom: y + 3 };
      if (written.some((one) => box.left < one.right && box.right > one.left && box.top < one.bottom && box.bottom > one.top)) continue;
      written.push(box);
      context.strokeStyle = "rgba(255,255,255,.95)";
      context.lineWidth = 3.5;
      context.strokeText(lesion.lesion, x, y);
      context.fillStyle = "#22262e";
      context.fillText(lesion.lesion, x, y);
    }
  };

  const drawCorrections = (context, at, ratio) => {
    for (const one of corrections.all) {
      stroke(context, WsiMeta.addRings(new Path2D(), one.polygons), at.scale, ratio, one.kind === "false" ? "#0f7f9c" : "#c4232f", 1.8, [7, 4]);
    }
    if (corrections.draft?.length) {
      const path = new Path2D();
      corrections.draft.forEach((x, place, all) => place % 2 || path[place ? "lineTo" : "moveTo"](x, all[place + 1]));
      stroke(context, path, at.scale, ratio, "#c4232f", 2);
      context.fillStyle = "#c4232f";
      for (let place = 0; place < corrections.draft.length; place += 2) {
        context.fillRect(corrections.draft[place] - 3 / at.scale, corrections.draft[place + 1] - 3 / at.scale, 6 / at.scale, 6 / at.scale);
      }
    }
  };

  const draw = () => {
    if (!viewer?.viewport || !picture) return;
    const ratio = fit(over);
    const at = frame();
    const context = over.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, over.width, over.height);
    if (!facts.slide.mark) drawEdge(context, at, ratio);
    if (view.shown) {
      context.globalAlpha = view.opacity;
      drawCells(context, picture, at, ratio);
      context.globalAlpha = 1;
      for (const mask of shownMasks()) drawMask(context, mask, at, ratio);
    }
    const unit = at.scale * ratio;
    context.setTransform(unit, 0, 0, unit, -at.left * unit, -at.top * unit);
    if (view.outlined && outlines) {
      stroke(context, outlines, at.scale, ratio, "#22262e", 1.2);
      if (view.selected) stroke(context, view.selected.path, at.scale, ratio, "#a8386b", 2.6);
    }
    drawCorrections(context, at, ratio);
    if (view.outlined && found) drawNumbers(context, at, ratio);
    drawScale(at.scale);
  };

  const shownMasks = () => masks.filter(({ layer }) => !layer || layer === view.layer);

  const drawMask = (context, { name, colour, cells }, at, ratio) => {
    fit(veil);
    const pen = veil.getContext("2d");
    pen.globalCompositeOperation = "source-over";
    pen.clearRect(0, 0, veil.width, veil.height);
    drawCells(pen, cells, at, ratio);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = WsiMeta.hatch(pen, name, colour, ratio);
    pen.fillRect(0, 0, veil.width, veil.height);
    context.drawImage(veil, 0, 0);
  };

  const drawEdge = (context, { left, top, scale }, ratio) => {
    const unit = scale * ratio;
    context.fillStyle = "#fff";
    context.strokeStyle = "#c9cdd5";
    context.lineWidth = ratio;
    context.beginPath();
    context.rect(-left * unit, -top * unit, facts.grid.width * unit, facts.grid.height * unit);
    context.fill();
    context.stroke();
  };

  const drawScale = (scale) => {
    const { length, words } = WsiMeta.roundLength((170 / scale) * facts.grid.mpp);
    byId("scale").firstElementChild.style.width = `${(length / facts.grid.mpp) * scale}px`;
    byId("scale").lastElementChild.textContent = words;
  };

  const paint = () => {
    picture = WsiMeta.paintLayer(facts, values, view.layer, view.hidden ? view.threshold : 0);
    draw();
  };

  // ---- panel --------------------------------------------------------------------------------------------------------

  const make = (kind, text, className) => Object.assign(document.createElement(kind), { textContent: text ?? "", className: className ?? "" });

  // Put rows in the place of a list's; the focus stays where it was, or on the last row where that one is gone.
  const replaceRows = (list, rows) => {
    const held = document.activeElement;
    const at = [...list.children].findIndex((row) => row.contains(held));
    const button = at < 0 ? -1 : [...list.children[at].querySelectorAll("button")].indexOf(held);
    list.replaceChildren(...rows);
    const row = at < 0 ? null : rows[Math.min(at, rows.length - 1)];
    (row?.querySelectorAll("button")[button] ?? row)?.focus({ preventScroll: true });
  };

  const inWords = WsiMeta.threshold;

  // One of the model's own as it is, any other in thousandths: the server finds lesions at no others.
  const ownOrRounded = (threshold, { thresholds } = facts) =>
    Object.values(thresholds).includes(threshold) ? threshold : Math.max(1, Math.round(threshold * 1000)) / 1000;

  const notice = (text) => {
    if (text === told) return; // a reader of the screen would read it again
    told = text;
    byId("notice").textContent = text;
    byId("notice").hidden = !text;
  };

  // Take a notice back that begins so, once it is true no longer.
  const unless = (beginning) => {
    if (told.startsWith(beginning)) notice(facts.slide.mark ? "" : facts.slide.told);
  };

  const showFacts = () => {
    document.title = `${facts.name}: wsi-meta`;
    byId("name").replaceChildren(facts.name, ...(facts.store === `${facts.name}.zarr` ? [] : [make("small", facts.store)]));
    byId("all").hidden = !facts.several;
    const result = facts.facts.find((group) => group.title === "Result");
    byId("score").replaceChildren(...result.lines.flatMap(([name, value]) => [make("span", name), make("b", value)]));
    const groups = facts.facts.filter((group) => group.title !== "Result").map((group) => {
      const list = make("dl");
      for (const [name, value] of group.lines) list.append(make("dt", name), make("dd", value));
      const details = make("details");
      details.append(make("summary", group.title), list);
      return details;
    });
    const open = [...document.querySelectorAll("#facts details")].map((one) => one.open);
    groups.forEach((group, number) => { group.open = open[number] ?? false; });
    byId("facts").replaceChildren(...groups);
    byId("points").replaceChildren(
      ...facts.points.map(([name, value]) => {
        const button = make("button", `${name} ${inWords(value, 2)}`, "link");
        button.type = "button";
        button.addEventListener("click", () => setThreshold(value));
        return button;
      }),
    );
    if (!facts.slide.mark) notice(facts.slide.told);
  };

  const showLayer = () => {
    const layer = facts.layers.find((one) => one.name === view.layer);
    const table = WsiMeta.bytesOf(layer.table);
    const context = byId("colours").getContext("2d");
    const image = context.createImageData(256, 1);
    for (let step = 0; step < 256; step++) {
      const value = (step / 255) * layer.top;
      const alpha = facts.slide.mark ? (layer.opaque ? Math.min(value / layer.opaque, 1) : 1) * view.opacity : 1;
      const faded = view.layer === "probability" && view.hidden && value < view.threshold ? 0 : alpha;
      image.data.set([...table.slice(3 * step, 3 * step + 3), 255 * faded], 4 * step);
    }
    context.putImageData(image, 0, 0);
    byId("label").textContent = layer.label.replace(/ \(research use only\)/, "");
    byId("top").textContent = layer.top;
    const legend = (view.shown ? shownMasks() : []).flatMap(({ name, colour, words }) => {
      const swatch = make("i", "", name);
      if (name === "background") swatch.style.background = colour;
      return [swatch, make("span", words)];
    });
    if (facts.slide.unread) legend.push(make("i", "", "unread"), make("span", facts.slide.unread_words));
    byId("veil").hidden = !legend.length;
    byId("veil").replaceChildren(...legend);
  };

  const showControls = () => {
    for (const [id, value] of [["opacity", view.opacity], ["threshold", view.threshold]]) {
      byId(id).value = value;
      byId(id).nextElementSibling.textContent = id === "opacity" ? value.toFixed(2) : inWords(value);
    }
    for (const id of ["shown", "outlined", "hidden"]) byId(id).checked = view[id];
    document.querySelector("#layers select").value = view.layer;
    byId("hidden").disabled = !WsiMeta.ofTumor(view.layer);
    showLayer();
  };

  const showLesions = () => {
    const shown = found.lesions.slice(0, 300);
    byId("count").textContent = found.count;
    byId("rule").textContent = `Cells of ${inWords(found.threshold)} or more that touch, one of them of ${inWords(found.peak)} or more`;
    const rows = shown.map((lesion) => {
      const row = make("tr");
      const [most, least] = lesion.cut ? ["at least ", "≥"] : ["", ""];
      const figures = [least + lesion.diameter_mm.toFixed(2), least + lesion.area_mm2.toFixed(3), WsiMeta.probability(lesion.max_probability).replace(" ", "")];
      const name = (lesion.size_class === "macrometastasis" ? "" : most) + lesion.size_class;
      row.append(make("td", lesion.lesion), make("td", name.replace("metastasis", "\u00admetastasis")), ...figures.map((text) => make("td", text, "number")));
      const last = make("td");
      if (!corrections.readOnly) {
        const isFalse = corrections.isFalse(lesion);
        row.classList.toggle("false", isFalse);
        const button = make("button", isFalse ? "undo" : "reject", "link");
        button.type = "button";
        button.title = isFalse ? "It is a lesion after all" : "This is no lesion";
        button.ariaLabel = `${button.textContent}, lesion ${lesion.lesion}`;
        button.addEventListener("click", (event) => { event.stopPropagation(); corrections.toggle(lesion); });
        last.append(button);
      }
      row.append(last);
      row.tabIndex = 0;
      row.classList.toggle("selected", view.selected === lesion);
      row.addEventListener("click", () => fly(lesion));
      row.addEventListener("keydown", (event) => event.target === row && event.key === "Enter" && fly(lesion));
      return row;
    });
    replaceRows(document.querySelector("#lesions tbody"), rows);
    const notes = found.count ? [] : [`${facts.none[0].toUpperCase()}${facts.none.slice(1)}.`];
    if (found.count > shown.length) notes.push(`The largest ${shown.length} are listed.`);
    if (source.kept && found.threshold !== view.threshold) {
      notes.push(`The outlines are those of ${inWords(found.threshold)}: this page keeps lesions at ${source.kept.map((one) => Number(inWords(one))).join(", ")}.`);
    }
    byId("more").hidden = !notes.length;
    byId("more").textContent = notes.join(" ");
  };

  const showCorrections = (saved = false) => {
    byId("corrections").hidden = corrections.readOnly;
    byId("saved").textContent = saved ? "saved" : "";
    if (saved) unless("Not saved");
    unless("An outline needs");
    const items = corrections.all.map((one, number) => {
      const item = make("li");
      const go = make("button", one.kind === "false" ? "not a lesion" : "missed lesion", `link ${one.kind}`);
      const remove = make("button", "remove", "link");
      remove.ariaLabel = `remove correction ${number + 1}`;
      go.addEventListener("click", () => flyTo(WsiMeta.boundsOf(one.polygons)));
      remove.addEventListener("click", () => corrections.remove(one));
      item.append(go, remove);
      return item;
    });
    replaceRows(document.querySelector("#corrections ul"), items);
    byId("draw").disabled = byId("drawing").hidden = Boolean(corrections.draft);
    byId("drawing").hidden = !corrections.draft;
    document.body.classList.toggle("drawing", Boolean(corrections.draft));
    if (found) showLesions();
    draw();
  };

  // ---- moving -------------------------------------------------------------------------------------------------------

  const flyTo = ({ left, top, right, bottom }) => {
    const least = 700 / facts.grid.mpp; // a lesion of one cell is shown with what lies round it
    const [width, height] = [Math.max(1.6 * (right - left), least), Math.max(1.6 * (bottom - top), least)];
    const [x, y] = [(left + right) / 2 - width / 2, (top + bottom) / 2 - height / 2];
    const unit = facts.grid.width;
    viewer.viewport.fitBounds(new OpenSeadragon.Rect(x / unit, y / unit, width / unit, height / unit));
  };

  const fly = (lesion) => {
    view.selected = lesion;
    showLesions();
    document.querySelector("#lesions tr.selected")?.scrollIntoView({ block: "nearest" });
    flyTo(lesion.bounds);
    draw();
  };

  const step = (by) => {
    if (!found?.lesions.length) return;
    const at = found.lesions.indexOf(view.selected);
    const count = Math.min(found.lesions.length, 300);
    fly(found.lesions[at < 0 ? (by > 0 ? 0 : count - 1) : (at + by + count) % count]);
  };

  const move = (right, down) => {
    const { viewport } = viewer;
    viewport.panBy(viewport.deltaPointsFromPixels(new OpenSeadragon.Point(60 * right, 60 * down)));
    viewport.applyConstraints();
  };

  // ---- link ---------------------------------------------------------------------------------------------------------

  const keepLink = () => {
    const { left, top, scale } = frame();
    const size = viewer.viewport.getContainerSize();
    const parts = new URLSearchParams({
      x: Math.round(left + size.x / scale / 2),
      y: Math.round(top + size.y / scale / 2),
      z: +scale.toPrecision(5),
      t: view.threshold,
      o: +view.opacity.toFixed(2),
      layer: view.layer,
      show: ["shown", "outlined", "hidden"].map((name) => Number(view[name])).join(""),
    });
    history.replaceState(null, "", `#${parts}`);
  };

  const readLink = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    const number = (name, least, most) => {
      const value = parseFloat(parts.get(name));
      return Number.isFinite(value) ? Math.min(most, Math.max(least, value)) : null;
    };
    view.threshold = ownOrRounded(number("t", 0, 1) ?? view.threshold);
    view.opacity = number("o", 0, 1) ?? view.opacity;
    if (facts.layers.some((layer) => layer.name === parts.get("layer"))) view.layer = parts.get("layer");
    const shown = parts.get("show") ?? "";
    if (/^[01]{3}$/.test(shown)) ["shown", "outlined", "hidden"].forEach((name, at) => { view[name] = shown[at] === "1"; });
    const [x, y, z] = [number("x", 0, facts.grid.width), number("y", 0, facts.grid.height), number("z", 1e-5, 16)];
    return x === null || y === null || z === null ? null : { x, y, z };
  };

  const goTo = ({ x, y, z }) => {
    const { viewport } = viewer;
    viewport.zoomTo((z * facts.grid.width) / viewport.getContainerSize().x, null, true);
    viewport.panTo(new OpenSeadragon.Point(x / facts.grid.width, y / facts.grid.width), true);
  };

  // ---- data ---------------------------------------------------------------------------------------------------------

  // All that is shown is of one time: of the store as it was when its facts were asked for. Where not all of a later time can be
  // had, what was shown stays, and the notice says why.

  const reasonOf = (error) => (error.status === undefined ? "no answer from wsi-meta view; start it again and load this page anew" : error.message);

  const takeLesions = (answer) => {
    found = answer;
    outlines = new Path2D();
    for (const lesion of found.lesions) {
      WsiMeta.addRings(outlines, lesion.polygons);
      lesion.bounds = WsiMeta.boundsOf(lesion.polygons);
      lesion.corner = WsiMeta.rightCorner(lesion.polygons[0][0]);
      lesion.path = WsiMeta.addRings(new Path2D(), lesion.polygons);
    }
    const { peak_x: x, peak_y: y } = view.selected ?? {};
    view.selected = view.selected && (found.lesions.find((one) => one.peak_x === x && one.peak_y === y) ?? null);
    showLesions();
    draw();
  };

  const loadLesions = async () => {
    const [mine, asked] = [++wanted, view.threshold];
    try {
      const answer = await source.lesions(facts.version, asked);
      if (mine !== wanted) return;
      unless("No lesions");
      takeLesions(answer);
    } catch (error) {
      if (mine !== wanted) return;
      if (error.status === GROWN) return look();
      if (view.threshold === asked) setBack();
      notice(`No lesions at threshold ${inWords(asked)}, shown are those of ${inWords(found.threshold)}: ${reasonOf(error)}`);
    }
  };

  const setBack = () => {
    view.threshold = found.threshold;
    showControls();
    paint();
  };

  const load = async (now) => {
    const before = view.threshold;
    const asked = before === facts.threshold ? now.threshold : ownOrRounded(before, now);
    const [map, lesions] = await Promise.all([source.map(now.version), source.lesions(now.version, asked)]);
    wanted++; // an answer about the map before is not waited for
    facts = now;
    values = WsiMeta.unpack(facts, map);
    masks = WsiMeta.paintMasks(facts, values);
    const isSet = view.threshold !== before; // meanwhile, by hand
    if (!isSet) view.threshold = asked;
    showFacts();
    paint();
    showControls();
    takeLesions(lesions);
    if (isSet) await loadLesions();
  };

  const loadAnew = async () => {
    const now = await source.facts();
    // another slide, one that was not at hand, or a map of other layers
    const kind = ({ slide_scanned: scanned, slide, layers }) => JSON.stringify([scanned, slide.mark, layers.map(({ name }) => name)]);
    if (kind(now) === kind(facts)) await load(now);
    else location.reload();
  };

  const watch = async (isOld = false) => {
    let pause = facts.finished ? 15000 : 2500;
    try {
      if (!document.hidden) {
        const { version, unread } = await source.version();
        if (isOld || version !== facts.version) await loadAnew();
        else if (unread !== facts.slide.unread) {
          facts.slide.unread = unread;
          showLayer();
        }
        await corrections.refresh();
        if (trouble) unless(trouble);
        trouble = "";
      }
    } catch (error) {
      pause = 2500;
      if (error.status !== GROWN) {
        trouble = `Shown is what was read before. Now: ${reasonOf(error)}`;
        notice(trouble);
      }
    }
    clearTimeout(next);
    next = setTimeout(watch, pause);
  };

  const look = () => watch(true);

  // Once tiles have come, the server knows whether all of them could be read.
  const lookSoon = () => {
    clearTimeout(next);
    next = setTimeout(watch, 1000);
  };

  // ---- hands --------------------------------------------------------------------------------------------------------

  let later;
  const setThreshold = (value) => {
    view.threshold = ownOrRounded(value);
    showControls();
    requestAnimationFrame(paint);
    clearTimeout(later);
    later = setTimeout(() => { loadLesions(); keepLink(); }, 120);
  };

  const set = (name, value) => {
    view[name] = value;
    showControls();
    if (name === "layer" || name === "hidden") paint();
    else draw();
    keepLink();
  };

  const showCursor = (event) => {
    const box = viewer.container.getBoundingClientRect();
    const { left, top, scale } = frame();
    const { rows, cols, cell_l0: side, mpp, width, height } = facts.grid;
    const [x, y] = [left + (event.clientX - box.left) / scale, top + (event.clientY - box.top) / scale];
    const [col, row] = [Math.floor(x / side), Math.floor(y / side)];
    if (x < 0 || y < 0 || x >= width || y >= height) { byId("cursor").textContent = ""; return; }
    const mm = (pixels) => ((pixels * mpp) / 1000).toFixed(2);
    const words = [`x ${Math.floor(x)}, y ${Math.floor(y)} px`, `${mm(x)}, ${mm(y)} mm`];
    if (row < rows && col < cols) {
      const cell = row * cols + col;
      for (const { name, highest, unmeasured } of facts.layers) {
        const step = values[name][cell];
        const value = (step / facts.steps.top) * highest;
        const shown = highest === 1 ? WsiMeta.probability(value) : value.toFixed(highest > 2 ? 0 : 3);
        const explained = highest === 1 || name === view.layer; // by its legend
        if (step !== facts.steps.none && explained) words.push(`${name} ${shown}`);
        else if (name === view.layer && values.status[cell] === WsiMeta.STATUS.scanned) words.push(unmeasured);
      }
      words.push(facts.status[values.status[cell]].replace("pending", "not scanned yet"));
    }
    byId("cursor").textContent = words.join("  ·  ");
  };

  const keys = {
    n: () => step(1),
    p: () => step(-1),
    m: () => set("shown", !view.shown),
    o: () => set("outlined", !view.outlined),
    "+": () => viewer.viewport.zoomBy(1.6),
    "=": () => viewer.viewport.zoomBy(1.6),
    "-": () => viewer.viewport.zoomBy(1 / 1.6),
    0: () => viewer.viewport.goHome(),
    ArrowLeft: () => move(-1, 0),
    ArrowRight: () => move(1, 0),
    ArrowUp: () => move(0, -1),
    ArrowDown: () => move(0, 1),
    d: () => corrections.begin(),
    f: () => view.selected && corrections.toggle(view.selected),
    "?": () => byId("keys").showModal(),
    Escape: () => corrections.draft && corrections.giveUp(),
    Enter: () => corrections.draft && corrections.close(),
  };

  const listen = () => {
    for (const id of ["shown", "outlined", "hidden"]) byId(id).addEventListener("change", (event) => set(id, event.target.checked));
    byId("opacity").addEventListener("input", (event) => set("opacity", event.target.valueAsNumber));
    byId("threshold").addEventListener("input", (event) => setThreshold(event.target.valueAsNumber));
    document.querySelector("#layers select").addEventListener("change", (event) => set("layer", event.target.value));
    byId("help").addEventListener("click", () => keys["?"]());
    byId("draw").addEventListener("click", () => corrections.begin());
    viewer.container.addEventListener("mousemove", showCursor);
    viewer.container.addEventListener("mouseleave", () => { byId("cursor").textContent = ""; });
    document.addEventListener("keydown", (event) => {
      const theirs = `select, dialog, dialog *${event.key.startsWith("Arrow") ? ", input[type=range], aside, aside *" : ""}`;
      const act = keys[event.key];
      if (event.target.matches(theirs) || event.ctrlKey || event.metaKey || event.altKey || !act || (event.key === "Enter" && !corrections.draft)) return;
      event.preventDefault();
      act();
    });
    document.addEventListener("visibilitychange", () => source.live && watch());
    addEventListener("hashchange", () => {
      const place = readLink();
      showControls();
      paint();
      loadLesions();
      if (place) goTo(place);
    });
    viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; }); // the keys are ours
    viewer.addHandler("canvas-click", (event) => {
      if (!corrections.draft || !event.quick) return;
      const { left, top, scale } = frame();
      const clamp = (value, most) => Math.min(most, Math.max(0, Math.round(value * 10) / 10));
      corrections.add(clamp(left + event.position.x / scale, facts.grid.width), clamp(top + event.position.y / scale, facts.grid.height));
    });
    viewer.addHandler("canvas-double-click", (event) => {
      if (!corrections.draft) return;
      event.preventDefaultAction = true;
      corrections.close();
    });
    for (const name of ["update-viewport", "resize"]) viewer.addHandler(name, draw);
    // where the whole slide is in view the small one says nothing, and hides tissue
    const whole = () => viewer.viewport.getZoom(true) < 1.2 * viewer.viewport.getHomeZoom();
    const fold = () => { viewer.navigator.element.style.visibility = whole() ? "hidden" : "visible"; };
    for (const name of ["update-viewport", "resize"]) viewer.addHandler(name, fold);
    fold();
    viewer.addHandler("animation-finish", keepLink);
    if (source.live) viewer.addHandler("tile-loaded", lookSoon);
  };

  const begin = async () => {
    facts = await source.facts();
    view.threshold = facts.threshold;
    view.opacity = facts.slide.mark ? 0.7 : 1;
    const select = document.querySelector("#layers select");
    select.replaceChildren(...facts.layers.map(({ name }) => Object.assign(make("option", name), { value: name })));
    byId("layers").hidden = facts.layers.length < 2;
    corrections = new WsiMeta.Corrections(source, facts.slide_scanned, { changed: showCorrections, refused: notice });
    const place = readLink();
    viewer = OpenSeadragon({
      element: byId("slide"),
      prefixUrl: "",
      drawer: "canvas",
      // without tiles to draw it would draw each frame anew, for ever, unless nothing of it is to be seen
      tileSources: { tileSource: WsiMeta.tileSource(source, facts), opacity: facts.slide.mark ? 1 : 0, preload: !facts.slide.mark },
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.14,
      navigatorAutoFade: false,
      maxZoomPixelRatio: 4,
      minZoomImageRatio: 0.6,
      visibilityRatio: 0.3,
      animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.5,
      springStiffness: 9,
      imageLoaderLimit: 6,
      timeout: 120000,
      gestureSettingsMouse: { clickToZoom: false },
      gestureSettingsTouch: { pinchRotate: false },
    });
    over.className = "over";
    Object.assign(viewer.canvas, { role: "img", ariaLabel: `${facts.name}: the slide and its map` });
    viewer.canvas.append(over);
    await Promise.all([new Promise((resolve) => viewer.addOnceHandler("open", resolve)), load(facts)]);
    if (place) goTo(place);
    listen();
    draw();
    await corrections.load();
    document.body.dataset.ready = "yes";
    WsiMeta.page = { viewer, view, frame, facts: () => facts, found: () => found, corrections, fly, setThreshold, set };
    if (source.live) next = setTimeout(watch, 2500);
  };

  begin().catch((error) => {
    notice(error.message);
    console.error(error);
  });
})();
