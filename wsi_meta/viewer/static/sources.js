"use strict";
// Where the page gets its data from: the server that sent it or, without one, the files beside it.
const WsiMeta = {};

WsiMeta.source = () => (window.WSI_META_FILES ? WsiMeta.fromFiles(window.WSI_META_FILES) : WsiMeta.fromServer());

WsiMeta.fromServer = () => {
  const base = location.pathname.replace(/\/$/, "");
  const ask = async (path, options) => {
    const answer = await fetch(`${base}/${path}`, options);
    if (!answer.ok) throw Object.assign(new Error(answer.statusText || `answer ${answer.status}`), { status: answer.status });
    return answer;
  };
  return {
    live: true,
    facts: async () => (await ask("facts")).json(),
    version: async () => (await ask("version")).json(),
    map: async (version) => (await ask(`map/${version}`)).arrayBuffer(),
    lesions: async (version, threshold) => (await ask(`lesions/${version}/${threshold}`)).json(),
    tileUrl: (mark, level, col, row) => `${base}/tile/${mark}/${level}/${col}/${row}`,
    corrections: async () => (await ask("corrections")).json(),
    save: async (corrections, revision, slide) =>
      (
        await ask("corrections", {
          method: "PUT",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ corrections, revision, slide }),
        })
      ).json(),
  };
};

WsiMeta.fromFiles = (files) => ({
  live: false,
  kept: Object.keys(files.lesions).map(Number).sort((one, other) => one - other), // thresholds of which it has the lesions
  facts: async () => files.facts,
  map: async () => {
    const packed = Uint8Array.from(atob(files.map), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  },
  lesions: async (_version, threshold) => {
    const off = (one) => Math.abs(Number(one) - threshold);
    return files.lesions[Object.keys(files.lesions).reduce((best, one) => (off(one) < off(best) ? one : best))];
  },
  tileUrl: (_mark, level, col, row) => `tiles/${level}/${col}_${row}.jpg`,
});

// The levels of the slide for OpenSeadragon. A level has whole pixels: its last tile may reach over the slide's edge by less
// than one of them, and is placed so, else it would be squeezed.
WsiMeta.tileSource = (source, facts) => {
  const { width, height } = facts.grid;
  const { mark, levels } = facts.slide;
  if (!mark) {
    const maxLevel = Math.max(1, Math.ceil(Math.log2(Math.max(width, height) / 512)));
    return { width, height, tileSize: 512, minLevel: 0, maxLevel, getTileUrl: () => "", tileExists: () => false };
  }
  const place = (level, col, row) => {
    const { width: w, height: h, tile_width: tw, tile_height: th } = levels[level];
    return [col * tw, row * th, Math.min(tw, w - col * tw), Math.min(th, h - row * th)];
  };
  return {
    width,
    height,
    tileSize: 512,
    minLevel: 0,
    maxLevel: levels.length - 1,
    getLevelScale: (level) => 1 / levels[level].downsample,
    getTileWidth: (level) => levels[level].tile_width,
    getTileHeight: (level) => levels[level].tile_height,
    getNumTiles: (level) => {
      const { width: w, height: h, tile_width: tw, tile_height: th } = levels[level];
      return new OpenSeadragon.Point(Math.ceil(w / tw), Math.ceil(h / th));
    },
    getTileBounds: (level, col, row, inItself) => {
      const [x, y, w, h] = place(level, col, row);
      if (inItself) return new OpenSeadragon.Rect(0, 0, w, h);
      const unit = levels[level].downsample / width;
      return new OpenSeadragon.Rect(x * unit, y * unit, w * unit, h * unit);
    },
    getTileUrl: (level, col, row) => source.tileUrl(mark, level, col, row),
  };
};
