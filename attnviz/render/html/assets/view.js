// What the reader chose, and the page that shows it.

const CHOICES = {
  direction: ["to", "by"],
  scale: ["sqrt", "linear"],
  range: ["auto", "full"],
  theme: ["auto", "light", "dark"],
};
const USUAL = { direction: "to", scale: held.linear ? "linear" : "sqrt", range: "auto", theme: "auto" };
const PLAIN = 0.01; // of the scale: weights below do not colour the text
const STRONGEST = 5;
const LEAST_TOLD = 0.005; // tokens that are named, and the weight from which they are
const LEAST_THUMBNAIL = 10;
const MOST_THUMBNAIL = 64;
const RIM = 6; // CSS pixels of a side
const LEAST_SHARE = 0.6; // of the window's height, that is for the picture wherever it begins
const INKS = ["ink", "muted", "faint", "line", "ground", "accent"];
const scroller = get("scroll");
const linesCanvas = scroller.querySelector("canvas");
const overviewCanvas = get("heads").querySelector("canvas");

const state = { map: 0, layer: 0, head: 0, token: null, lines: [], ...USUAL }; // lines: [layer, head] that are kept
let head; // the one that is shown, and those whose lines are drawn beside its own
let kept = [];
let pointed = null; // {side, cell} under the pointer, or in focus
let against = null; // the cell of the other side that is
let hovered = null; // {row, column} of the picture that is
let tokens = {}; // elements of the tokens of each side; of one text the same
let buttons = []; // and of the heads, a list a layer
let turns = 0; // of show(), of which the last one counts
let inks, colours, layout;

const section = () => held.sections[state.map];
const isNumber = (name) => /^\d+$/.test(name);
const sideOf = (direction) => (direction === "to" ? "rows" : "columns");
const across = (side) => (side === "rows" ? "columns" : "rows");
const locked = () => (state.token === null ? null : { side: sideOf(state.direction), cell: state.token });
const focus = () => locked() ?? pointed;
const isOneText = () => sameText(head.rows, head.columns);
const isComparable = ({ rows, columns }) => rows === head.rows && columns === head.columns;
const scaleEnd = () => (state.range === "full" ? "largest" : "top");
const lineOf = (layer, place) => state.lines.findIndex(([i, j]) => i === layer && j === place);
const colourOf = (layer, place) => HEAD_COLOURS[lineOf(layer, place) + 1];

/** A layer, or a head, by its short name: L5, H3, mean. */
const short = (letter, name) => (isNumber(name) ? `${letter}${name}` : name);

/** A head by its short name: L5H3, or "L5 mean". */
function shortName(layer, place) {
  const [i, j] = [section().layers[layer], section().heads[place]];
  return `${short("L", i)}${isNumber(j) ? "" : " "}${short("H", j)}`;
}

/** A head by its long name: "layer 5, head 3", or "layer 5, mean over heads". */
function longName(layer, place) {
  const [i, j] = [section().layers[layer], section().heads[place]];
  return `layer ${i}, ${isNumber(j) ? `head ${j}` : `${j} over heads`}`;
}

/** Show what is chosen, once its weights have been read. */
async function show() {
  const turn = ++turns;
  const others = state.lines.filter(([i, j]) => i !== state.layer || j !== state.head);
  const reading = [[state.layer, state.head], ...others].map(([i, j]) => readHead(state.map, i, j));
  get("head").ariaBusy = "true";
  const [found] = await Promise.all([Promise.all(reading), readThumbnails(state.map)]);
  if (turn !== turns) return;
  [head, ...kept] = found;
  if (state.token >= cellsOf(head[sideOf(state.direction)])) state.token = null;
  if (pointed?.cell >= cellsOf(head[pointed?.side ?? "rows"])) pointed = null;
  get("head").ariaBusy = "false";
  render();
  performance.mark("shown");
}

/** Draw everything anew. */
function render() {
  document.documentElement.dataset.theme = state.theme;
  const style = getComputedStyle(document.documentElement);
  const name = longName(state.layer, state.head);
  inks = Object.fromEntries(INKS.map((ink) => [ink, style.getPropertyValue(`--${ink}`)]));
  const { weights, signed } = head.section;
  colours = colouring(weights, head[scaleEnd()], head.largest, state.scale === "linear", signed);
  for (const choice of Object.keys(CHOICES)) {
    document.querySelector(`[name=${choice}][value=${state[choice]}]`).checked = true;
  }
  get("map").selectedIndex = state.map;
  get("head-title").textContent = name[0].toUpperCase() + name.slice(1);
  paragraphs(get("caption"), [head.title, ...captionOf(head)]);
  paragraphs(get("overview-caption"), [section().title, ...section().caption]);
  buildText();
  buildHeads();
  renderHeads();
  renderLegend();
  renderPicture();
  renderFocus();
  if (locked()) reveal(locked());
  say(`${name}. ${locked() ? told().join(" ") : ""}`);
}

/** A new element with text in it. */
function element(kind, text, properties = {}) {
  return Object.assign(document.createElement(kind), { textContent: text, ...properties });
}

/** Fill an element with paragraphs, those that say something. */
const paragraphs = (box, lines) => box.replaceChildren(...lines.filter(Boolean).map((line) => element("p", line)));

/** Tell those who do not see the page. */
const say = (text) => (get("status").textContent = text);

/** What is said below a picture. */
function captionOf({ caption, rows, columns, section: { cell } }) {
  if (rows.step * columns.step === 1) return caption;
  return [...caption, `a cell is a tile of ${rows.step} x ${columns.step} ${rows.unit}, and shows the largest ${cell} in it`];
}

// The heads

/** Make the elements of the heads, a button each over one picture of all, unless they are there. */
function buildHeads() {
  if (buttons.map === state.map) return;
  const button = (i, j) => {
    const found = element("button", "", { type: "button", ariaLabel: longName(i, j), title: longName(i, j) });
    Object.assign(found.dataset, { layer: i, head: j });
    return found;
  };
  buttons = section().heatmaps.map((row, i) => row.map((heatmap, j) => heatmap && button(i, j)));
  buttons.map = state.map;
  get("heads").replaceChildren(overviewCanvas, ...buttons.flat().filter(Boolean));
}

/** Draw all heads, unless they are there as they should be, and mark those that are chosen. */
function renderHeads() {
  const { layers, heads, byteWeights, largest, signed, thumbnails } = section();
  const linear = state.scale === "linear";
  const room = Math.floor((get("heads").clientWidth - OVERVIEW_LEFT - RIM) / heads.length);
  const size = Math.min(MOST_THUMBNAIL, Math.max(LEAST_THUMBNAIL, room));
  const drawn = `${[state.map, size, linear, state.range, devicePixelRatio, inks.ink]}`;
  if (buttons.drawn !== drawn) {
    const names = { layers: layers.map((name) => short("L", name)), heads: heads.map((name) => short("H", name)) };
    const [width, height] = [OVERVIEW_LEFT + heads.length * size + RIM, OVERVIEW_TOP + layers.length * size + RIM];
    const found = colouring(byteWeights, section()[scaleEnd()], largest, linear, signed);
    drawOverview(sized(overviewCanvas, width, height), thumbnails, found, size, names, inks);
    buttons.drawn = drawn;
  }
  buttons.forEach((row, i) => row.forEach((button, j) => button && markHead(button, i, j, size)));
}

/** Place the button of a head, and mark it if it is the one that is shown, or if its lines are kept. */
function markHead(button, i, j, size) {
  const isShown = i === state.layer && j === state.head;
  const isKept = lineOf(i, j) >= 0;
  const { style } = button;
  [style.left, style.top] = [`${OVERVIEW_LEFT + j * size}px`, `${OVERVIEW_TOP + i * size}px`];
  style.width = style.height = `${size}px`;
  style.outlineColor = isKept ? colourOf(i, j) : "";
  button.classList.toggle("kept", isKept);
  button.ariaCurrent = isShown ? "true" : null;
  button.tabIndex = isShown ? 0 : -1;
  if (!isShown) return;
  bring(get("heads"), [j * size, OVERVIEW_TOP + i * size], [OVERVIEW_LEFT + size, size]);
  if (get("heads").contains(document.activeElement)) button.focus({ preventScroll: true });
}

/** Draw the head that is shown, as large as there is room for. */
function renderPicture() {
  const box = get("picture");
  const width = box.clientWidth;
  const context = get("cells").getContext("2d");
  const below = innerHeight - (box.getBoundingClientRect().top + scrollY) - 4 * GAP;
  layout = { ...laidOut(context, head, width, Math.max(below, LEAST_SHARE * innerHeight)), within: width };
  for (const name of ["cells", "marks"]) sized(get(name), width, layout.height);
  drawHead(context, head, layout, colours, inks);
  get("cells").ariaLabel = `${head.title}; rows are ${head.rows.name}, columns are ${head.columns.name}`;
}

// The text

/** Make the elements of the text, unless they are those of the last head. */
function buildText() {
  if (tokens.of?.rows === head.rows && tokens.of.columns === head.columns) return;
  const one = isOneText();
  const rows = tokenElements(get("rows"), head.rows);
  tokens = { of: head, rows, columns: one ? rows : tokenElements(get("columns"), head.columns) };
  get("columns").parentElement.hidden = one;
  for (const side of ["rows", "columns"]) {
    get(`${side}-title`).textContent = one ? "" : head[side].name;
    get(side).ariaLabel = one ? "Tokens" : head[side].name;
  }
}

/** An element for each token, or tile of tokens, with white space where the text has it. */
function tokenElements(box, axis) {
  const found = Array.from({ length: cellsOf(axis) }, (_, cell) =>
    element("span", textOf(axis, cell), { role: "button", tabIndex: cell ? -1 : 0 }),
  );
  found.forEach((token, cell) => (token.dataset.cell = cell));
  const spaced = (cell) => cell > 0 && axis.spaced[cell * axis.step];
  box.replaceChildren(...found.flatMap((token, cell) => (spaced(cell) ? [" ", token] : [token])));
  return found;
}

/** Colour the tokens that the focus attends to, or that attend to it. Those with next to nothing stay plain. */
function paintText() {
  const at = focus();
  const codes = at && codesAlong(head, at);
  const lit = at && tokens[across(at.side)];
  const stepOf = (code) => (Math.abs(head.section.weights[code]) < PLAIN * colours.most ? null : colours.steps[code]);
  for (const side of new Set([tokens.rows, tokens.columns])) {
    const isLit = side === lit;
    const isOwn = at && side === tokens[at.side];
    side.forEach((token, cell) => {
      const step = isLit ? stepOf(codes[cell]) : null;
      const isFocus = isOwn && cell === at.cell;
      token.style.backgroundColor = colours.styles[step] ?? "";
      token.style.color = colours.inkOn[step] ?? "";
      token.classList.toggle("masked", step === MASKED);
      token.classList.toggle("focus", Boolean(isFocus));
      token.classList.toggle("against", isLit && cell === against);
      token.ariaPressed = `${isFocus && state.token !== null}`;
    });
  }
}

/** What the focus attends to most, or what most attends to it: its name, and a sentence. */
function told() {
  const at = focus();
  if (!at) return ["", usual()];
  const others = head[across(at.side)];
  const codes = codesAlong(head, at);
  const { weights, signed, full, cell: named } = head.section;
  const size = (cell) => Math.abs(weights[codes[cell]]);
  const least = LEAST_TOLD * Math.min(full, 1);
  const strong = Array.from(codes, (_, cell) => cell).filter((cell) => size(cell) >= least);
  strong.sort((a, b) => size(b) - size(a) || a - b);
  const listed = strong.slice(0, STRONGEST).map((cell) => `${nameOf(others, cell)} ${weightTold(codes[cell])}`);
  const verbs = at.side === "rows" ? ["attends to", "most to"] : ["is attended by", "most by"];
  const signs = named === "score" ? ["has the largest scores with", "largest with"] : ["differs at", "most at"];
  const [verb, most] = signed ? signs : verbs;
  const list = listed.join(", ") || `nothing by ${tidy(least)} or more`;
  const pair = against === null ? "" : `${nameOf(others, against)}: ${weightTold(codes[against])}; ${most} `;
  return [nameOf(head[at.side], at.cell), `${verb} ${pair}${list}`];
}

/** The weight of a code, or that there is none. */
const weightTold = (code) => (code ? shown(head.section.weights[code], head.section.signed) : "masked");

/** What is said while no token is pointed at. */
function usual() {
  const size = Math.max(head.rows.step, head.columns.step);
  const { unit } = head.rows;
  return `Point at a ${size > 1 ? `tile of ${size} ${unit}` : unit.slice(0, -1)} to see what it attends to; click to keep it.`;
}

// What follows the pointer

/** Draw all that depends on the token that is pointed at or locked. */
function renderFocus() {
  const at = focus();
  const marks = get("marks").getContext("2d");
  marks.clearRect(0, 0, innerWidth, layout.height);
  for (const [side, cell] of [
    ["rows", hovered?.row],
    ["columns", hovered?.column],
  ]) {
    const own = at?.side === side ? at.cell : null;
    const marked = Array.from(new Set([own, cell ?? null])).filter((place) => place !== null);
    drawLabels(marks, head, layout, side, inks, marked);
    drawFrames(marks, head, layout, side, inks, marked);
  }
  paintText();
  renderLines();
  const [name, sentence] = told();
  get("told").replaceChildren(element("strong", name), ` ${sentence}`);
}

/** Draw the part of the lines that is scrolled to. */
function renderLines() {
  const heads = [head, ...kept].filter(isComparable);
  const at = focus();
  const content = ROW * Math.max(head.height, head.width);
  const most = opaque(heads, scaleEnd());
  const opacity = { most, faintest: at ? FAINTEST_OF_ONE : FAINTEST, linear: !at || state.scale === "linear" };
  scroller.firstElementChild.style.height = `${content}px`;
  const width = scroller.clientWidth;
  const height = Math.min(content, scroller.clientHeight);
  const view = { width, height, scrolled: scroller.scrollTop };
  drawLines(sized(linesCanvas, width, height), view, opacity, heads, inks, at);
  const part = content > height && !at ? "; those that begin or end in view" : "";
  const root = opacity.linear ? "" : "√ of the ";
  const range = `full from ${tidy(most)} on; none below ${tidy(most * opacity.faintest)}`;
  const { signed, cell } = head.section;
  const named = signed ? `size of the ${cell}, dashed where it is negative` : cell;
  get("threshold").textContent = `opacity is the ${root}${named}, ${range}${part}`;
}

/** Name the heads whose lines are drawn, each with its colour and a way to drop it. */
function renderLegend() {
  const isKept = lineOf(state.layer, state.head) >= 0;
  const own = isKept ? [] : [legendItem(state.layer, state.head)];
  get("legend").replaceChildren(...own, ...state.lines.map(([i, j]) => legendItem(i, j)));
  get("keep").textContent = isKept ? "Drop this head" : "Keep this head";
  get("keep").disabled = !isKept && state.lines.length === MOST_LINES;
}

/** A head of the legend. */
function legendItem(layer, place) {
  const other = isComparable(section().heatmaps[layer][place]) ? "" : " (other tokens)";
  const item = element("li", shortName(layer, place) + other);
  const dot = element("i", "");
  dot.style.backgroundColor = colourOf(layer, place);
  item.prepend(dot);
  if (lineOf(layer, place) < 0) return item;
  const label = `drop the lines of ${longName(layer, place)}`;
  item.append(element("button", "×", { type: "button", ariaLabel: label, onclick: () => keep(layer, place) }));
  return item;
}

/** Scroll a token into view, in the text and in the lines; not in the one that it was pointed at in. */
function reveal({ side, cell }, except) {
  const token = tokens[side][cell];
  const text = token.parentElement;
  if (text !== except) bring(text, [0, token.offsetTop], [0, token.offsetHeight]);
  if (scroller !== except) bring(scroller, [0, cell * ROW], [0, ROW]);
}

/** Scroll a box so that a part of it is in view, given its left and top, and its width and height. */
function bring(box, [left, top], [width, height]) {
  const { scrollLeft, scrollTop, clientWidth, clientHeight } = box;
  if (left < scrollLeft || left + width > scrollLeft + clientWidth) box.scrollLeft = left + (width - clientWidth) / 2;
  if (top < scrollTop || top + height > scrollTop + clientHeight) box.scrollTop = top + (height - clientHeight) / 2;
}
