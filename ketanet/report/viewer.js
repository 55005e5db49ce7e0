(function () {
"use strict";

const byId = (id) => document.getElementById(`viewer-${id}`);
const MINUS = "\u2212";
const UNTESTED = -32768;
const FAR_MM = 10;
/* Type of a colour table that starts at zero and hides what is below the bound; of meshes it would fade that. */
const HIDE_BELOW = 2;
/* niivue leaves out a volume without opacity; its outlines are drawn in full. */
const OUTLINES_ONLY = 0.004;

function absent(why) {
  byId("absent").textContent = `There is no interactive viewer: ${why}. The slices on this page show the same maps.`;
  byId("absent").hidden = false;
  byId("panel").hidden = true;
}

function number(value, digits) {
  const text = value.toFixed(digits);
  return Number(text) < 0 ? MINUS + text.slice(1) : text.replace("-", "");
}

// --- what the page holds -----------------------------------------------------------------------------------------

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

async function unzip(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* Inverse of `pack` in viewer.py. */
async function unpack(text) {
  const planes = await unzip(text);
  const size = planes.length / 4;
  const values = new Int32Array(size);
  let last = 0;
  for (let n = 0; n < size; n++) {
    const folded =
      planes[n] | (planes[n + size] << 8) | (planes[n + 2 * size] << 16) | (planes[n + 3 * size] << 24);
    last = (last + ((folded >>> 1) ^ -(folded & 1))) | 0;
    values[n] = last;
  }
  return values;
}

/* Lattice voxels that show an element: their place in a NIfTI volume, their element, and the element at each voxel. */
async function readLattice(grid) {
  const [inside, owner] = await Promise.all([unpack(grid.inside), unpack(grid.element)]);
  const [ni, nj, nk] = grid.shape;
  const place = new Int32Array(owner.length);
  const elementAt = new Int32Array(inside.length).fill(-1);
  let found = 0;
  for (let flat = 0; flat < inside.length; flat++) {
    if (!inside[flat]) continue;
    const k = flat % nk;
    const j = Math.floor(flat / nk) % nj;
    place[found] = Math.floor(flat / (nk * nj)) + ni * (j + nj * k);
    elementAt[flat] = owner[found++];
  }
  function element(mm) {
    const at = grid.toVoxel.slice(0, 3).map((row) =>
      // halves go up, as where slices are cut
      Math.floor(row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3] + 0.5 + 1e-6));
    const off = at.some((index, axis) => index < 0 || index >= grid.shape[axis]);
    return off ? -1 : elementAt[(at[0] * nj + at[1]) * nk + at[2]];
  }
  return { place, owner, element, size: ni * nj * nk };
}

/* A NIfTI volume of values of elements, as bytes. */
function volumeOf(lattice, header, Values, valueOf) {
  const start = bytesOf(header);
  const buffer = new ArrayBuffer(start.length + lattice.size * Values.BYTES_PER_ELEMENT);
  new Uint8Array(buffer).set(start);
  const values = new Values(buffer, start.length);
  paint(lattice, values, valueOf);
  return { buffer, values };
}

function paint(lattice, values, valueOf) {
  for (let n = 0; n < lattice.place.length; n++) values[lattice.place[n]] = valueOf(lattice.owner[n]);
}

/* What is drawn of a map, by element; 0 for nothing. */
function drawnValue(map) {
  if (map.unit) return (e) => (map.raw[e] === UNTESTED ? 0 : map.raw[e] * map.unit);
  if (map.kind === "network") return (e) => (map.raw[e] ? map.of[e] / map.contrasts : 0);
  return (e) => Math.max(map.raw[e], 0) / map.contrasts;
}

function percent(map, hits) {
  const share = (100 * hits) / map.contrasts;
  return `${number(share, Number.isInteger(share) ? 0 : 1)} % of the contrasts (${hits} of ${map.contrasts})`;
}

function valueInWords(map, element, what) {
  if (element < 0) return `no ${what} of the grid`;
  const raw = map.raw[element];
  if (raw === UNTESTED) return "not tested";
  if (map.kind === "t") return `t = ${number(raw * map.unit, 2)}`;
  if (map.kind === "p") return `p = ${Number((10 ** (-raw * map.unit)).toPrecision(2))}`;
  if (map.kind === "network") {
    return raw ? `in the network, ${percent(map, map.of[element])}` : "not in the network";
  }
  return raw < 0 ? "not tested" : percent(map, raw);
}

// --- colours -----------------------------------------------------------------------------------------------------

/* A table of niivue; its first colour, that of 0, is transparent. */
function table(stops) {
  const steps = stops.map((_, n) => Math.round((255 * n) / (stops.length - 1)));
  return {
    R: [stops[0][0], ...stops.map((c) => c[0])],
    G: [stops[0][1], ...stops.map((c) => c[1])],
    B: [stops[0][2], ...stops.map((c) => c[2])],
    A: [0, ...stops.map(() => 255)],
    I: [0, 1, ...steps.slice(1)],
  };
}

function addColours(nv, template) {
  const { shares, signs } = template.maps;
  const middle = (signs.length - 1) / 2;
  nv.addColormap("ketanet_shares", table(shares));
  nv.addColormap("ketanet_above", table(signs.slice(middle)));
  nv.addColormap("ketanet_below", table(signs.slice(0, middle + 1).reverse()));
  // a light brain on white: the dark end of the colours stays visible
  nv.addColormap("ketanet_brain", { R: [255, 77, 255], G: [255, 77, 255], B: [255, 77, 255], A: [0, 40, 130], I: [0, 8, 255] });
}

/* A value on the colour scale, with its unit. */
function boundInWords(map, value) {
  if (map.kind === "t") return number(value, Number.isInteger(value) ? 0 : 1);
  if (map.kind === "p") return `${Number((10 ** -value).toPrecision(2))}`;
  return `${number(100 * value, 0)} %`;
}

function showScale(map, stops) {
  byId("scale-name").textContent = map.scale;
  byId("bar").style.background = `linear-gradient(to right, ${stops.map((c) => `rgb(${c})`).join(", ")})`;
  const low = map.kind === "t" ? -map.limit : 0;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const tick = document.createElement("span");
    tick.textContent = boundInWords(map, low + part * (map.limit - low));
    return tick;
  });
  byId("ticks").replaceChildren(...ticks);
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// --- the viewer --------------------------------------------------------------------------------------------------

async function image(buffer, name, options) {
  const made = await niivue.NVImage.new(buffer, name, options.colormap, options.opacity, null, options.low, options.high);
  return Object.assign(made, { colorbarVisible: false }, options.more);
}

async function open(canvas) {
  const nv = new niivue.Niivue({
    logLevel: "fatal",
    loadingText: "",
    dragAndDropEnabled: false,
    backColor: [1, 1, 1, 1],
    crosshairColor: [0, 0.45, 0.1, 1],
    crosshairWidth: 0.3,
    crosshairGap: 4,
    fontColor: [0.2, 0.2, 0.2, 1],
    fontMinPx: 14,
    isNearestInterpolation: true,
    isForceMouseClickToVoxelCenters: true,
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    show3Dcrosshair: true,
    atlasOutline: 1,
    dragMode: niivue.DRAG_MODE.none,
  });
  await nv.attachToCanvas(canvas, false);
  canvas.parentElement.style.backgroundColor = "";
  return nv;
}

class Viewer {
  constructor(nv, data, lattice, canonical) {
    Object.assign(this, { nv, data, lattice, canonical, map: null, at: [0, 0, 0], loads: 0 });
    this.maps = new Map(data.maps.map((map) => [map.key, map]));
  }

  async start() {
    const { nv, data, lattice } = this;
    addColours(nv, data.template);
    const head = bytesOf(data.template.header);
    const brain = await unzip(data.template.values);
    const buffer = new ArrayBuffer(head.length + brain.length);
    new Uint8Array(buffer).set(head);
    new Uint8Array(buffer).set(brain, head.length);
    nv.addVolume(await image(buffer, "brain.nii", { colormap: "ketanet_brain", opacity: 1, low: 0, high: data.template.greys }));
    const drawn = volumeOf(lattice, data.grid.header.map, Float32Array, () => 0);
    nv.addVolume(await image(drawn.buffer, "map.nii", { colormap: "ketanet_shares", opacity: 0.9, low: 0, high: 1, more: { colormapType: HIDE_BELOW } }));
    if (this.canonical) {
      const labels = volumeOf(lattice, data.grid.header.labels, Int16Array, () => 0);
      const volume = await image(labels.buffer, "labels.nii", { colormap: "gray", opacity: 0, low: 0, high: 1 });
      const hues = this.canonical.colours.map(rgb);
      // the last one is that of a network alone
      const [R, G, B] = [0, 1, 2].map((part) => [0, ...hues.map((hue) => hue[part]), 0]);
      volume.setColormapLabel({ R, G, B });
      nv.addVolume(volume);
    }
    this.listen();
    await this.choose(data.maps[0].key);
    const first = data.maps.flatMap((map) => map.peaks)[0];
    this.go(first ? first.at : [0, 0, 0]);
  }

  async choose(key) {
    const load = ++this.loads;
    const map = this.maps.get(key);
    map.raw ??= await unpack(map.values);
    if (map.counts) {
      const counts = this.maps.get(map.counts);
      map.of = counts.raw ??= await unpack(counts.values);
    }
    // another map was chosen meanwhile
    if (load !== this.loads) return;
    this.map = map;
    const volume = this.nv.volumes[1];
    paint(this.lattice, volume.img, drawnValue(map));
    volume.colormap = map.kind === "t" ? "ketanet_above" : "ketanet_shares";
    volume.colormapNegative = map.kind === "t" ? "ketanet_below" : "";
    const slider = byId("threshold");
    Object.assign(slider, { min: 0, max: map.limit, step: map.step });
    slider.value = map.threshold;
    showScale(map, this.data.template.maps[map.colours]);
    this.listPeaks();
    this.threshold();
    this.read();
    byId("panel").dataset.map = key;
  }

  threshold() {
    const { map } = this;
    const low = Number(byId("threshold").value);
    const sign = { t: "|t| \u2265 ", p: "p \u2264 " }[map.kind] ?? "\u2265 ";
    byId("threshold-value").textContent = sign + boundInWords(map, low);
    const volume = this.nv.volumes[1];
    // a share of exactly the bound is shown; 32-bit floats may lie below it
    const bound = Math.max(low - 1e-5, 1e-6);
    Object.assign(volume, { cal_min: bound, cal_max: map.limit });
    const both = map.kind === "t";
    Object.assign(volume, { cal_minNeg: both ? -map.limit : NaN, cal_maxNeg: both ? -bound : NaN });
    byId("shown").textContent = this.shownInWords(bound);
    this.draw();
  }

  shownInWords(bound) {
    const { map, data } = this;
    const value = drawnValue(map);
    let shown = 0;
    for (let e = 0; e < data.grid.size; e++) shown += Math.abs(value(e)) >= bound;
    const [those, all] = [shown, data.grid.size].map((n) => n.toLocaleString("en"));
    return `${those} of ${all} ${data.element}s`;
  }

  opacity() {
    const share = Number(byId("opacity").value);
    byId("opacity-value").textContent = `${share} %`;
    this.nv.volumes[1].opacity = share / 100;
    this.draw();
  }

  outline(choice) {
    const { canonical, lattice, nv } = this;
    const one = Number(choice);
    const black = canonical.names.length + 1;
    paint(lattice, nv.volumes[2].img, (e) => {
      const label = canonical.raw[e];
      if (choice === "all") return label;
      return label === one ? black : 0;
    });
    nv.volumes[2].opacity = choice === "none" ? 0 : OUTLINES_ONLY;
    const legend = byId("legend");
    legend.hidden = choice !== "all";
    legend.replaceChildren(...canonical.names.map((name, n) => {
      const line = document.createElement("li");
      const mark = document.createElement("span");
      mark.style.borderColor = canonical.colours[n];
      line.append(mark, name);
      return line;
    }));
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      this.nv.updateGLVolume();
      // maps are drawn as they are, voxel by voxel; the template smoothly
      this.nv.updateInterpolation(0, true);
      this.nv.drawScene();
    });
  }

  listPeaks() {
    const { peaks } = this.map;
    byId("peak-field").hidden = peaks.length === 0;
    const options = peaks.map((peak, n) => new Option(`${peak.name} (${peak.at.map((mm) => number(mm, 0)).join(", ")})`, n));
    byId("peak").replaceChildren(new Option("choose", ""), ...options);
  }

  go(mm) {
    this.at = mm;
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.drawScene();
    this.read();
  }

  read() {
    const { at, map, lattice, data, canonical } = this;
    ["x", "y", "z"].forEach((axis, n) => {
      const field = byId(axis);
      if (document.activeElement !== field || Number(field.value) !== at[n]) field.value = at[n];
    });
    const element = lattice.element(at);
    const parts = [
      `x = ${number(at[0], 0)}, y = ${number(at[1], 0)}, z = ${number(at[2], 0)} mm`,
      `${map.name}: ${valueInWords(map, element, data.element)}`,
    ];
    if (data.names.length && element >= 0) parts.push(`${data.element}: ${data.names[element]}`);
    if (canonical) {
      const label = element < 0 ? 0 : canonical.raw[element];
      parts.push(`canonical network: ${label ? canonical.names[label - 1] : "none"}`);
    }
    byId("readout").textContent = `${parts.join("; ")}.`;
  }

  listen() {
    const { nv } = this;
    const { canvas } = nv;
    nv.onLocationChange = (place) => {
      this.at = Array.from(place.mm).slice(0, 3).map((mm) => Math.round(mm) + 0);
      this.read();
    };
    byId("map").addEventListener("change", (event) => this.choose(event.target.value));
    byId("threshold").addEventListener("input", () => this.threshold());
    byId("opacity").addEventListener("input", () => this.opacity());
    byId("peak").addEventListener("change", (event) => {
      if (event.target.value !== "") this.go(this.map.peaks[event.target.value].at);
    });
    byId("view").addEventListener("change", (event) => {
      nv.setSliceType(niivue.SLICE_TYPE[event.target.value.toUpperCase()]);
    });
    byId("radiological").addEventListener("change", (event) => nv.setRadiologicalConvention(event.target.checked));
    byId("canonical")?.addEventListener("change", (event) => this.outline(event.target.value));
    ["x", "y", "z"].forEach((axis, n) => {
      byId(axis).addEventListener("change", (event) => {
        const mm = event.target.valueAsNumber;
        if (Number.isFinite(mm)) this.go(this.at.map((old, other) => (other === n ? mm : old)));
      });
    });
    this.steer(canvas);
  }

  steer(canvas) {
    const frame = canvas.parentElement;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1], PageDown: [2, -1], PageUp: [2, 1] };
    const near = this.data.template.voxel;
    // before niivue, whose own keys show messages and change what the page has switches for
    frame.addEventListener("keydown", (event) => {
      event.stopPropagation();
      const move = moves[event.key];
      if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const mm = this.at.slice();
      const sign = move[0] === 0 && byId("radiological").checked ? -1 : 1;
      mm[move[0]] += sign * move[1] * (event.shiftKey ? FAR_MM : Math.max(Math.round(near), 1));
      this.go(mm);
    }, true);
    frame.addEventListener("keyup", (event) => event.stopPropagation(), true);
    // the wheel scrolls the page until the picture was chosen
    frame.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) event.stopPropagation();
    }, true);
    // niivue takes the focus whenever the crosshair moves, away from the field that moved it
    const focus = canvas.focus.bind(canvas);
    canvas.focus = () => {};
    canvas.addEventListener("pointerdown", () => focus({ preventScroll: true }));
  }
}

async function main() {
  const canvas = byId("canvas");
  if (typeof DecompressionStream === "undefined") return absent("this browser is too old to unpack the maps");
  const probe = document.createElement("canvas").getContext("webgl2");
  if (!probe) return absent("this browser has no WebGL2");
  // the probe would count among the few contexts that a page may have
  probe.getExtension("WEBGL_lose_context")?.loseContext();
  try {
    const data = JSON.parse(byId("data").textContent);
    const lattice = await readLattice(data.grid);
    const { canonical } = data;
    if (canonical) canonical.raw = await unpack(canonical.values);
    byId("panel").hidden = false;
    const viewer = new Viewer(await open(canvas), data, lattice, canonical);
    await viewer.start();
    viewer.opacity();
    byId("panel").dataset.ready = "yes";
  } catch (error) {
    absent(`it could not start (${error.message})`);
  }
}

main();
})();
