"use strict";
// The map as a picture of one pixel a cell, and all that is drawn above the slide.

WsiMeta.STATUS = { pending: 0, background: 1, scanned: 2, unreadable: 3 };

// The arrays of a packed map, row by row: each layer as uint16, then the status as uint8.
WsiMeta.unpack = (facts, buffer) => {
  const cells = facts.grid.rows * facts.grid.cols;
  const values = {};
  facts.layers.forEach((layer, number) => {
    values[layer.name] = new Uint16Array(buffer, 2 * cells * number, cells);
  });
  values.status = new Uint8Array(buffer, 2 * cells * facts.layers.length, cells);
  return values;
};

// A probability; none is rounded to 0 or 1. With signs, as the list of lesions has no room for words.
WsiMeta.probability = (value) => ({ "0.000": "< 0.001", "1.000": "> 0.999" })[value.toFixed(3)] ?? value.toFixed(3);

// A threshold; with more decimals where it would be rounded to 1, and with two figures where it is small.
WsiMeta.threshold = (value, digits = 3) => {
  if (value < 0.1 ** (digits - 1)) return String(+value.toPrecision(2));
  while (value < 1 && Number(value.toFixed(digits)) === 1) digits++;
  return value.toFixed(digits);
};

WsiMeta.bytesOf = (hexadecimal) => Uint8Array.from(hexadecimal.match(/../g), (pair) => parseInt(pair, 16));

const makeCanvas = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

// A canvas of one pixel for each square of so many cells a side: of them the one of the highest rank shows, so that none is
// hidden that is high or unknown. paint(cell) -> red, green, blue, alpha as one little-endian number; rank(cell) -> -1: never.
const paintSquares = (grid, side, paint, rank) => {
  const canvas = makeCanvas(Math.ceil(grid.cols / side), Math.ceil(grid.rows / side));
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  const highest = new Int32Array(pixels.length).fill(-1);
  for (let row = 0, cell = 0; row < grid.rows; row++) {
    const first = Math.floor(row / side) * canvas.width;
    for (let col = 0; col < grid.cols; col++, cell++) {
      const at = first + Math.floor(col / side);
      const own = rank(cell);
      if (own <= highest[at]) continue;
      highest[at] = own;
      pixels[at] = paint(cell);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
};

// The canvases of squares of any side, each painted when it is needed.
const paintCells = (grid, paint, rank) => {
  const painted = {};
  return (side) => (painted[side] ??= paintSquares(grid, side, paint, rank));
};

// Whether a layer is of probability, so that cells under a threshold may be left out of it.
WsiMeta.ofTumor = (layer) => layer === "probability" || layer === "uncertainty";

// The colours of a layer. Opacity follows the value where a slide lies beneath, as in wsi-meta overlay.
WsiMeta.paintLayer = (facts, values, name, least) => {
  const layer = facts.layers.find((one) => one.name === name);
  const { top, none } = facts.steps;
  const table = WsiMeta.bytesOf(layer.table);
  const [own, probability] = [values[name], values.probability];
  const lowest = WsiMeta.ofTumor(name) ? Math.round(least * top) : 0;
  const fixed = facts.slide.mark ? null : 255;
  const paint = (cell) => {
    const value = (own[cell] / top) * layer.highest;
    const colour = 3 * Math.min(255, Math.floor((value / layer.top) * 256));
    const alpha = fixed ?? (layer.opaque ? Math.round(255 * Math.min(value / layer.opaque, 1)) : 255);
    return ((alpha << 24) | (table[colour + 2] << 16) | (table[colour + 1] << 8) | table[colour]) >>> 0;
  };
  return paintCells(facts.grid, paint, (cell) => (own[cell] === none || probability[cell] < lowest ? -1 : own[cell]));
};

// Canvases that are opaque where cells have a status, or were scanned and have no value of a layer; only for what some cell
// is. Each with its name, colour and words, and the layer that it belongs to: none is for all.
WsiMeta.paintMasks = (facts, values) => {
  const masks = [];
  const { status } = values;
  const opaque = (isWanted) => (cell) => (isWanted(cell) ? 0xff000000 : 0);
  for (const name of ["background", "pending", "unreadable"]) {
    const wanted = WsiMeta.STATUS[name];
    if (!status.includes(wanted)) continue;
    const others = name === "background" ? 1 : -1; // a square with any other cell is not background
    const is = (cell) => status[cell] === wanted;
    masks.push({ name, ...facts.veil[wanted], cells: paintCells(facts.grid, opaque(is), (cell) => (is(cell) ? 0 : others)) });
  }
  for (const { name: layer, unmeasured: words } of facts.layers) {
    const isScanned = (cell) => status[cell] === WsiMeta.STATUS.scanned;
    const is = (cell) => isScanned(cell) && values[layer][cell] === facts.steps.none;
    if (!status.some((_, cell) => is(cell))) continue;
    const rank = (cell) => (is(cell) ? 0 : isScanned(cell) ? 1 : -1); // a square with any measured cell has its colour
    masks.push({ name: "unmeasured", layer, colour: "rgba(60,66,78,.8)", words, cells: paintCells(facts.grid, opaque(is), rank) });
  }
  return masks;
};

// Hatching: unreadable cells have lines both ways over a tint, others that are unknown one way. Background has its plain colour.
WsiMeta.hatch = (context, name, colour, ratio) => {
  if (name === "background") return colour;
  const side = Math.round(9 * ratio);
  const tile = makeCanvas(side, side);
  const pen = tile.getContext("2d");
  pen.globalAlpha = name === "unreadable" ? 0.35 : 0.12;
  pen.fillStyle = colour;
  pen.fillRect(0, 0, side, side);
  pen.globalAlpha = 1;
  pen.strokeStyle = colour;
  pen.lineWidth = 1.6 * ratio;
  for (const shift of [-side, 0, side]) {
    pen.moveTo(shift, side);
    pen.lineTo(shift + side, 0);
    if (name === "unreadable") {
      pen.moveTo(shift, 0);
      pen.lineTo(shift + side, side);
    }
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
};

WsiMeta.addRings = (path, polygons) => {
  for (const rings of polygons) {
    for (const ring of rings) {
      path.moveTo(ring[0], ring[1]);
      for (let at = 2; at < ring.length; at += 2) path.lineTo(ring[at], ring[at + 1]);
      path.closePath();
    }
  }
  return path;
};

WsiMeta.boundsOf = (polygons) => {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [outer] of polygons) {
    for (let at = 0; at < outer.length; at += 2) {
      left = Math.min(left, outer[at]);
      right = Math.max(right, outer[at]);
      top = Math.min(top, outer[at + 1]);
      bottom = Math.max(bottom, outer[at + 1]);
    }
  }
  return { left, top, right, bottom };
};

// Of the corners of a ring that are farthest right, the upper one: where overlay writes a lesion's number.
WsiMeta.rightCorner = (ring) => {
  let best = 0;
  for (let at = 2; at < ring.length; at += 2) {
    if (ring[at] > ring[best] || (ring[at] === ring[best] && ring[at + 1] < ring[best + 1])) best = at;
  }
  return [ring[best], ring[best + 1]];
};

// Whether a point lies in polygons with holes: an odd number of sides to its right.
WsiMeta.isInside = (x, y, polygons) => {
  let inside = false;
  for (const rings of polygons) {
    for (const ring of rings) {
      for (let at = 0, before = ring.length - 2; at < ring.length; before = at, at += 2) {
        const [x0, y0, x1, y1] = [ring[at], ring[at + 1], ring[before], ring[before + 1]];
        if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) inside = !inside;
      }
    }
  }
  return inside;
};

// A length in whole steps of 1, 2 and 5, at most so many micrometres.
WsiMeta.roundLength = (most) => {
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((step) => step * power).find((one) => one <= most);
  return { length, words: length >= 1000 ? `${length / 1000} mm` : `${+length.toPrecision(3)} µm` };
};
