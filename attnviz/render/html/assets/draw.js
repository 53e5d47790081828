// A head on a canvas (cells, labels, colour bar) and all heads as small pictures, drawn from what is handed over.

const SHADES = held.colours[0].length / 6 - 1;
const MASKED = -1;
const BEYOND = SHADES; // steps of the colour scale, beside 0 to SHADES - 1
const GAP = 6;
const LABEL = 12;
const SMALL = 11;
const BAR = 12;
const SLANT = -Math.PI / 3; // CSS pixels, and radians
const MOST_CELL = 40;
const LEAST_SIDE = 120;
const BAR_SIDE = 90;
const BAR_HEIGHT = 240;
const NUMBERED = 40; // tokens from which labels carry numbers, since not all are drawn
const OVERVIEW_LEFT = 30;
const OVERVIEW_TOP = 20;
const PORTRAIT = { width: 900, height: 860, sharpness: 2, margin: 16, line: 18 }; // of a file
const FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif";
const LABEL_FONT = `${LABEL}px ${FONT}`;
const BOLD_FONT = `bold ${LABEL}px ${FONT}`;
const SMALL_FONT = `${SMALL}px ${FONT}`;

const widths = new Map(); // of labels
const [ofWeights, ofDifferences] = held.colours.map(painted);

/** A colour map by step, as CSS has it, with the ink for text on it, and as pixels, of which the first is masked. */
function painted(colours) {
  const shades = Array.from({ length: SHADES + 1 }, (_, i) => {
    const rgb = parseInt(colours.slice(6 * i, 6 * i + 6), 16);
    return [rgb >> 16, (rgb >> 8) & 255, rgb & 255];
  });
  return {
    styles: shades.map((rgb) => `rgb(${rgb})`),
    inkOn: shades.map(([r, g, b]) => (0.2126 * r + 0.7152 * g + 0.0722 * b > 110 ? "#000" : "#fff")),
    pixels: Uint32Array.from([0, ...shades.map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r)]),
  };
}

/** A weight as a place on the colour scale, 0 to 1; 0 is where it begins, or of differences its middle. */
function level(weight, most, linear, signed = false) {
  const share = Math.min(Math.abs(weight) / most, 1);
  const size = linear ? share : Math.sqrt(share);
  return signed ? 0.5 + (Math.sign(weight) * size) / 2 : size;
}

/** How codes become colours: the step of every code, and what the colour bar says. top and largest are codes. */
function colouring(weights, top, largest, linear, signed) {
  const most = weights[top] || 1;
  const steps = Int16Array.from(weights, (weight, code) => {
    if (!code) return MASKED;
    if (code > top && !signed) return BEYOND;
    return Math.min(SHADES - 1, Math.floor(level(weight, most, linear, signed) * SHADES));
  });
  const beyond = largest > top && !signed ? weights[largest] : null;
  return { steps, linear, most, signed, beyond, ...(signed ? ofDifferences : ofWeights) };
}

/** Codes as pixels, one a cell. */
function pixelsOf({ codes, height, width }, { steps, pixels }) {
  const data = new Uint32Array(height * width);
  for (let i = 0; i < data.length; i++) data[i] = pixels[steps[codes[i]] + 1];
  return new ImageData(new Uint8ClampedArray(data.buffer), width, height);
}

/** A head of at most so many rows and columns: more are pooled by the largest. */
function fewer({ codes, height, width, section }, mostRows, mostColumns) {
  const rows = Math.min(height, mostRows);
  const columns = Math.min(width, mostColumns);
  if (rows === height && columns === width) return { codes, height, width };
  const zero = zeroCode(held.exact, section.signed);
  return { codes: pooled(codes, height, width, rows, columns, zero), height: rows, width: columns };
}

/** The code of each block of cells that is farthest from that of no weight, none of them masked if one is not. */
function pooled(codes, height, width, rows, columns, zero) {
  const found = new codes.constructor(rows * columns);
  for (let i = 0; i < height; i++) {
    const start = Math.floor((i * rows) / height) * columns;
    for (let j = 0; j < width; j++) {
      const at = start + Math.floor((j * columns) / width);
      const code = codes[i * width + j];
      if (code && (!found[at] || Math.abs(code - zero) > Math.abs(found[at] - zero))) found[at] = code;
    }
  }
  return found;
}

/** A canvas of so many CSS pixels, sharp on this screen, and empty. */
function sized(canvas, width, height, ratio = devicePixelRatio) {
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  if (canvas.style) [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

/** The width of text in bold, the widest that it is drawn in. */
function widthOf(context, text) {
  if (!widths.has(text)) {
    context.font = BOLD_FONT;
    widths.set(text, context.measureText(text).width);
  }
  return widths.get(text);
}

/** Text that is no wider than a number of pixels. */
function fitted(context, text, most) {
  let shorter = shortened(text, 60);
  if (widthOf(context, shorter) <= most) return shorter;
  const signs = Array.from(shorter);
  while (signs.length > 1 && widthOf(context, (shorter = `${signs.join("")}…`)) > most) signs.pop();
  return shorter;
}

/** Every so many of the labels, so that they do not touch. */
function every(pixelsEach) {
  for (let ten = 1; ; ten *= 10) {
    const step = [1, 2, 5].find((times) => times * ten * pixelsEach > LABEL);
    if (step) return step * ten;
  }
}

/** The labels of an axis, none wider than a number of pixels, and how wide they are; long axes are numbered. */
function labelled(context, axis, most) {
  axis.labelled ??= new Map();
  if (axis.labelled.has(most)) return axis.labelled.get(most);
  const cells = cellsOf(axis);
  const numbered = cells > NUMBERED || axis.step > 1;
  const texts = Array.from({ length: cells }, (_, cell) => {
    const place = cell * axis.step;
    return fitted(context, `${numbered ? `${axis.numbers[place]} ` : ""}${axis.labels[place]}`, most);
  });
  const room = texts.reduce((widest, text) => Math.max(widest, widthOf(context, text)), 0);
  axis.labelled.set(most, { texts, room });
  return axis.labelled.get(most);
}

/** Pixels of this screen for the rows and the columns: whole ones a cell, if there are enough. */
function extents(cells, room, ratio) {
  const fit = Math.min(MOST_CELL * ratio, ...cells.map((count, i) => room[i] / count));
  const each = fit < 1 ? fit : Math.floor(fit);
  return cells.map((count, i) => {
    const least = Math.min(LEAST_SIDE * ratio, count * MOST_CELL * ratio, room[i]);
    const long = Math.max(count * each, least); // a single row of many cells is seen, too
    return Math.max(1, long < count ? Math.round(long) : count * Math.floor(long / count));
  });
}

/** Where everything of a head stands, in CSS pixels. */
function laidOut(context, head, width, height, ratio = devicePixelRatio) {
  const rows = labelled(context, head.rows, Math.min(160, Math.round(0.24 * width)));
  const columns = labelled(context, head.columns, Math.min(120, Math.round(0.24 * width)));
  const whole = (side) => Math.ceil(side * ratio) / ratio;
  const left = whole(Math.max(rows.room, 56) + GAP);
  const top = whole(Math.max(columns.room * Math.sin(-SLANT), 34) + 2 * GAP);
  const overhang = Math.max(BAR_SIDE, columns.room * Math.cos(SLANT) + GAP);
  const room = [Math.max(60, height - top) * ratio, Math.max(60, width - left - overhang) * ratio];
  const [high, wide] = extents([head.height, head.width], room, ratio).map((side) => side / ratio);
  const bar = Math.min(BAR_HEIGHT, Math.max(high - 70, 90));
  const size = { width: left + wide + overhang, height: top + Math.max(high, bar + 76) + GAP };
  return { rows, columns, left, top, high, wide, bar, ...size };
}

/** Draw a head: its cells, what the sides are, and the colour bar. */
function drawHead(context, head, layout, colours, inks) {
  const { left, top, wide, high } = layout;
  const ratio = context.getTransform().a;
  const cells = fewer(head, Math.round(high * ratio), Math.round(wide * ratio));
  const picture = new OffscreenCanvas(cells.width, cells.height);
  picture.getContext("2d").putImageData(pixelsOf(cells, colours), 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, left, top, wide, high);
  context.strokeStyle = inks.line;
  context.strokeRect(left - 0.5, top - 0.5, wide + 1, high + 1);
  context.fillStyle = inks.muted;
  context.font = SMALL_FONT;
  context.textAlign = "right";
  context.fillText(`${head.columns.name} →`, left - GAP, top - 28);
  context.fillText(`${head.rows.name} ↓`, left - GAP, top - 14);
  drawBar(context, left + wide + 22, top, layout.bar, colours, inks, head.codes.includes(0));
}

/** As many of the labels of a side as there is room for. Some cells, of any side, stand out. */
function drawLabels(context, head, layout, side, inks, marked = []) {
  const [count, long] = side === "rows" ? [head.height, layout.high] : [head.width, layout.wide];
  const apart = long / count;
  const step = every(apart);
  const { texts } = layout[side];
  const write = (cell, font, ink) =>
    placed(context, head, layout, side, cell, () => {
      [context.font, context.fillStyle] = [font, ink];
      context.fillText(texts[cell], 0, 0);
    });
  for (let cell = 0; cell < count; cell += step) {
    if (marked.every((other) => Math.abs(other - cell) * apart >= LABEL + 1)) write(cell, LABEL_FONT, inks.muted);
  }
  for (const cell of marked) write(cell, BOLD_FONT, inks.ink);
}

/** Draw where the label of a row ends, or that of a column begins. */
function placed(context, head, layout, side, cell, draw) {
  const isRow = side === "rows";
  context.save();
  context.textBaseline = "middle";
  context.textAlign = isRow ? "right" : "left";
  if (isRow) context.translate(layout.left - GAP, layout.top + ((cell + 0.5) * layout.high) / head.height);
  else context.translate(layout.left + ((cell + 0.5) * layout.wide) / head.width, layout.top - GAP);
  if (!isRow) context.rotate(SLANT);
  draw();
  context.restore();
}

/** Frame some rows or columns. */
function drawFrames(context, head, layout, side, inks, cells) {
  const { left, top, wide, high } = layout;
  const tall = high / head.height;
  const broad = wide / head.width;
  for (const cell of cells) {
    const row = [left, top + cell * tall, wide, tall];
    const column = [left + cell * broad, top, broad, high];
    const [x, y, w, h] = side === "rows" ? row : column;
    for (const [ink, out, thick] of [
      [inks.ground, 2, 2],
      [inks.accent, 0.75, 1.5],
    ]) {
      [context.strokeStyle, context.lineWidth] = [ink, thick];
      context.strokeRect(x - out, y - out, w + 2 * out, h + 2 * out);
    }
  }
}

/** The weights that the colour bar names: round ones that are far enough apart, and the ends of the scale. */
function ticks({ most, linear, signed }, high) {
  if (signed) {
    const half = ticks({ most, linear }, high / 2);
    return [...half, ...half.slice(0, -1).map((weight) => -weight)];
  }
  const found = [most];
  const place = (weight) => level(weight, most, linear) * high;
  for (let ten = 10 ** Math.ceil(Math.log10(most)); ten > most / 1e4; ten /= 10) {
    for (const weight of [ten, ten / 2, ten / 5]) {
      const room = Math.min(place(found.at(-1)) - place(weight), place(weight));
      if (weight < most && room > 1.8 * SMALL) found.push(weight);
    }
  }
  return [...found, 0];
}

/** The colour bar, with a swatch for weights beyond it and one for masked cells where there are any. */
function drawBar(context, x, y, high, colours, inks, hasMasked) {
  context.font = SMALL_FONT;
  context.textBaseline = "middle";
  context.textAlign = "left";
  const swatch = (at, fill, ...texts) => {
    const tall = BAR * texts.length;
    context.fillStyle = fill;
    context.fillRect(x, at, BAR, tall);
    context.strokeStyle = inks.line;
    context.strokeRect(x + 0.5, at + 0.5, BAR - 1, tall - 1);
    context.fillStyle = inks.muted;
    texts.forEach((text, i) => context.fillText(text, x + BAR + 5, at + (i + 0.5) * BAR + 0.5));
  };
  if (colours.beyond !== null) {
    swatch(y, colours.styles[BEYOND], "beyond,", `to ${tidy(colours.beyond)}`);
    y += 2 * BAR + 6;
    high -= BAR;
  }
  for (let i = 0; i < SHADES; i++) {
    context.fillStyle = colours.styles[i];
    context.fillRect(x, y + high - ((i + 1) * high) / SHADES, BAR, high / SHADES + (i ? 0.5 : 0));
  }
  context.fillStyle = inks.muted;
  for (const weight of ticks(colours, high)) {
    const place = level(weight, colours.most, colours.linear, colours.signed);
    const at = y + high * (1 - place);
    context.fillRect(x + BAR, Math.round(at) - (place ? 0 : 1), 3, 1);
    context.fillText(tidy(weight), x + BAR + 5, Math.min(Math.max(at, y + 4), y + high - 4));
  }
  context.fillText(colours.linear ? "linear scale" : "√ scale", x, y + high + 14);
  if (hasMasked) swatch(y + high + 26, inks.ground, "masked");
}

/** A weight of the colour bar, as short as can be. */
const tidy = (weight) => `${Number(weight.toPrecision(2))}`;

/** All heads of a section, small, a row a layer, each in a square of a size. */
function drawOverview(context, thumbnails, colours, size, names, inks) {
  const atlas = new OffscreenCanvas(names.heads.length * THUMBNAIL, names.layers.length * THUMBNAIL);
  const small = atlas.getContext("2d");
  const each = (draw) => thumbnails.forEach((row, i) => row.forEach((head, j) => head && draw(head, i, j)));
  each((head, i, j) => small.putImageData(pixelsOf(head, colours), j * THUMBNAIL, i * THUMBNAIL));
  context.imageSmoothingEnabled = false;
  each(({ width, height }, i, j) => {
    const [x, y] = [OVERVIEW_LEFT + j * size + 1.5, OVERVIEW_TOP + i * size + 1.5];
    context.drawImage(atlas, j * THUMBNAIL, i * THUMBNAIL, width, height, x, y, size - 3, size - 3);
  });
  Object.assign(context, { fillStyle: inks.muted, font: SMALL_FONT, textBaseline: "middle", textAlign: "center" });
  const some = (list, room, write) =>
    list.forEach((name, i) => i % Math.ceil(room / size) || write(name, (i + 0.5) * size));
  some(names.heads, 28, (name, at) => context.fillText(name, OVERVIEW_LEFT + at, OVERVIEW_TOP / 2));
  context.textAlign = "right";
  some(names.layers, LABEL, (name, at) => context.fillText(name, OVERVIEW_LEFT - GAP, OVERVIEW_TOP + at));
}

/** Lines of text that are no wider than a number of pixels, broken at spaces. */
function wrapped(context, text, most) {
  const found = [""];
  for (const word of text.split(" ")) {
    const longer = found.at(-1) ? `${found.at(-1)} ${word}` : word;
    if (context.measureText(longer).width <= most) found[found.length - 1] = longer;
    else found.push(fitted(context, word, most));
  }
  return found.filter(Boolean);
}

/** A canvas for a file: a head with its title, labels, colour bar and caption. */
function portrait(head, colours, inks, lines) {
  const canvas = document.createElement("canvas");
  const { margin, line } = PORTRAIT;
  const layout = laidOut(canvas.getContext("2d"), head, PORTRAIT.width, PORTRAIT.height, PORTRAIT.sharpness);
  const width = Math.max(layout.width, 320);
  const measure = canvas.getContext("2d");
  measure.font = BOLD_FONT;
  const title = wrapped(measure, head.title, width);
  const below = lines.flatMap((text) => wrapped(measure, text, width));
  const top = margin + title.length * line + GAP;
  const height = top + layout.height + below.length * line + 2 * margin;
  const context = sized(canvas, width + 2 * margin, height, PORTRAIT.sharpness);
  context.fillStyle = inks.ground;
  context.fillRect(0, 0, width + 2 * margin, height);
  const write = (texts, from, ink, font) =>
    texts.forEach((text, i) => {
      [context.font, context.fillStyle] = [font, ink];
      context.fillText(text, margin, from + (i + 0.75) * line);
    });
  write(title, margin, inks.ink, BOLD_FONT);
  write(below, top + layout.height + margin, inks.muted, LABEL_FONT);
  context.translate(margin, top);
  drawHead(context, head, layout, colours, inks);
  for (const side of ["rows", "columns"]) drawLabels(context, head, layout, side, inks);
  return canvas;
}
