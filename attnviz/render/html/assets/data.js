// What the page holds: weights as codes, a block a head, and the words around them. Nothing here draws.
"use strict";

const get = (id) => document.getElementById(id);
const held = JSON.parse(get("metadata").textContent);
const KEPT_BYTES = 128e6;
const MOST_KEPT = 8; // of heads that were read
const THUMBNAIL = 24; // cells of a side, at most
const BYTE_STEPS = 254;
const FLOAT16_ONE = 0x3c00;
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;
const read = new Map(); // codes of heads by their element, those that were used last at the end

/** How many rows, or columns, an axis has. */
const cellsOf = (axis) => Math.ceil(axis.labels.length / axis.step);

/** Where the tokens of a row, or column, stand in its axis. */
function tile(axis, cell) {
  const first = cell * axis.step;
  const last = Math.min(first + axis.step, axis.labels.length);
  return Array.from({ length: last - first }, (_, i) => first + i);
}

/** The numbers of the tokens of a row, or column: where they stand in the whole text. */
const numbersOf = (axis, cell) => tile(axis, cell).map((place) => axis.numbers[place]);

/** The running text of a row, or column. */
function textOf(axis, cell) {
  return tile(axis, cell)
    .map((place, i) => (i && axis.spaced[place] ? " " : "") + axis.labels[place])
    .join("");
}

/** Those numbers, from the first to the last. */
function rangeOf(axis, cell, to) {
  const numbers = numbersOf(axis, cell);
  return numbers.length === 1 ? `${numbers[0]}` : `${numbers[0]}${to}${numbers.at(-1)}`;
}

/** Long texts by their ends: half of the most characters from each. */
function shortened(text, most) {
  const signs = text.length > most ? Array.from(text) : [];
  if (signs.length <= most) return text;
  const each = Math.max(1, most >> 1);
  return `${signs.slice(0, each).join("")}…${signs.slice(-each).join("")}`;
}

/** A row, or column, by name: "cat (2)". Names from right to left are kept from turning the numbers after them. */
function nameOf(axis, cell) {
  const name = shortened(textOf(axis, cell), axis.step > 1 ? 16 : 32);
  return `${RIGHT_TO_LEFT.test(name) ? `\u2068${name}\u2069` : name} (${rangeOf(axis, cell, "–")})`;
}

/** Whether two axes are the same text. */
function sameText(one, other) {
  return (
    one === other ||
    (one.step === other.step &&
      `${one.numbers}` === `${other.numbers}` &&
      one.labels.every((label, i) => label === other.labels[i]))
  );
}

/** A float16 of 0 or more by its bits. */
function half(bits) {
  const exponent = bits >> 10;
  const fraction = bits & 1023;
  return exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
}

/** The code of no weight: the first, or of differences the one in the middle. */
const zeroCode = (exact, signed) => 1 + (signed ? (exact ? FLOAT16_ONE : BYTE_STEPS / 2) : 0);

/** The weight of every code: NaN where masked. Codes and weights rise together. */
function weightsByCode(full, exact, signed) {
  const found = new Float64Array(exact ? (signed ? 2 : 1) * FLOAT16_ONE + 2 : BYTE_STEPS + 2).fill(NaN);
  const zero = zeroCode(exact, signed);
  for (let code = 1; code < found.length; code++) {
    const far = Math.abs(code - zero);
    const size = exact ? half(far) : (far / (BYTE_STEPS + 1 - zero)) ** 2;
    found[code] = (code < zero ? -1 : 1) * full * size;
  }
  return found;
}

/** A weight in as many digits as it is known to; a difference with its sign. */
function shown(weight, signed = false) {
  if (weight === 0) return "0";
  const size = Math.abs(weight);
  const sign = weight < 0 ? "-" : signed ? "+" : "";
  if (held.exact) return sign + size.toPrecision(4);
  return sign + (size < 0.1 ? size.toPrecision(2) : size.toFixed(3));
}

/** Bytes of an element that has been read. */
async function inflated(stored) {
  const packed = stored.textContent;
  let bytes;
  if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(packed);
  else bytes = Uint8Array.from(atob(packed), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** An element, once the browser has read all of it: the last ones may still be on their way. */
function arrived(id) {
  const whole = () => get(id) && (get(id).nextElementSibling || document.readyState !== "loading");
  if (whole()) return get(id);
  return new Promise((resolve) => {
    const observer = new MutationObserver(check);
    function check() {
      if (!whole()) return;
      observer.disconnect();
      document.removeEventListener("readystatechange", check);
      resolve(get(id));
    }
    observer.observe(document.body, { childList: true });
    document.addEventListener("readystatechange", check);
  });
}

/** Codes of two bytes: all lower bytes stand before all upper ones. */
function joined(bytes) {
  const found = new Uint16Array(bytes.length / 2);
  for (let i = 0, upper = found.length; i < found.length; i++, upper++) found[i] = bytes[i] | (bytes[upper] << 8);
  return found;
}

/** A head with the codes of its weights, row by row. Those that were used last are kept, as many as fit. */
async function readHead(map, layer, head) {
  const id = `weights-${map}-${layer}-${head}`;
  const reading =
    read.get(id) ??
    Promise.resolve(arrived(id))
      .then(inflated)
      .then(held.exact ? joined : (bytes) => bytes);
  read.delete(id);
  read.set(id, reading);
  const codes = await reading;
  const most = Math.max(MOST_KEPT, Math.floor(KEPT_BYTES / codes.byteLength));
  while (read.size > most) read.delete(read.keys().next().value);
  return { ...held.sections[map].heatmaps[layer][head], layer, head, codes };
}

/** Read all heads of a section, small, in the order of its heatmaps. */
async function readThumbnails(map) {
  const section = held.sections[map];
  if (section.thumbnails) return;
  const codes = await inflated(get(`thumbnails-${map}`));
  let end = 0;
  const thumbnail = (heatmap) => {
    const height = Math.min(THUMBNAIL, heatmap.height);
    const width = Math.min(THUMBNAIL, heatmap.width);
    return { height, width, codes: codes.subarray(end, (end += height * width)) };
  };
  section.thumbnails = section.heatmaps.map((layer) => layer.map((heatmap) => heatmap && thumbnail(heatmap)));
}

/** The codes of a row or a column of a head. */
function codesAlong(head, { side, cell }) {
  if (side === "rows") return head.codes.subarray(cell * head.width, (cell + 1) * head.width);
  return Array.from({ length: head.height }, (_, row) => head.codes[row * head.width + cell]);
}

/** A field of a table, which no spreadsheet takes for a formula. */
function field(text) {
  const plain = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

/** The weights of a head as CSV, a row each; masked cells have none. */
function table(head, layer, name) {
  const labels = (axis) =>
    Array.from({ length: cellsOf(axis) }, (_, cell) => `${rangeOf(axis, cell, "..")},${field(textOf(axis, cell))}`);
  const queries = labels(head.rows);
  const keys = labels(head.columns);
  const place = `${field(layer)},${field(name)}`;
  const weights = Array.from(head.section.weights, (weight) => `${Number(weight.toPrecision(4))}`);
  const found = [`layer,head,query,query_token,key,key_token,${head.section.cell.replaceAll(" ", "_")}`];
  head.codes.forEach((code, at) => {
    if (code) found.push(`${place},${queries[Math.floor(at / head.width)]},${keys[at % head.width]},${weights[code]}`);
  });
  return `${found.join("\r\n")}\r\n`;
}

for (const section of held.sections) {
  section.weights = weightsByCode(section.full, held.exact, section.signed);
  section.byteWeights = weightsByCode(section.full, false, section.signed);
  for (const heatmap of section.heatmaps.flat().filter(Boolean)) {
    heatmap.section = section;
    heatmap.rows = held.axes[heatmap.rows];
    heatmap.columns = held.axes[heatmap.columns];
    heatmap.height = cellsOf(heatmap.rows);
    heatmap.width = cellsOf(heatmap.columns);
  }
}
