// What happens when the reader chooses, points, types or scrolls; and the beginning.

const OWN_ARROWS = "input, #scroll, #rows, #columns"; // where arrows have another meaning
const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -Infinity, End: Infinity };
const KEYS = new Map(
  Object.entries({
    ArrowLeft: () => move(0, -1),
    ArrowRight: () => move(0, 1),
    ArrowUp: () => move(-1, 0),
    ArrowDown: () => move(1, 0),
    "[": () => lockNext(-1),
    k: () => lockNext(-1),
    "]": () => lockNext(1),
    j: () => lockNext(1),
    t: () => choose({ direction: state.direction === "to" ? "by" : "to" }),
    m: () => keep(state.layer, state.head),
    Escape: leave,
    "?": () => toggleKeys(),
    "/": () => get("find").select(),
  }),
);

// Choosing, and the address that tells of it

/** Choose something, and show it. */
function choose(changes) {
  Object.assign(state, changes);
  if (pointed && isOneText()) pointed.side = sideOf(state.direction);
  against = hovered = null;
  get("tip").hidden = true;
  remember();
  return show();
}

/** Write what is chosen into the address, a little later, since browsers count. A frame may not, which is no harm. */
function remember() {
  clearTimeout(remember.timer);
  remember.timer = setTimeout(() => {
    try {
      history.replaceState(null, "", written());
    } catch {}
  }, 250);
}

/** What is chosen as a fragment, which leaves out what is usual. */
function written() {
  const { layers, heads, heatmaps, name } = section();
  const fields = new URLSearchParams();
  if (held.sections.length > 1) fields.set("map", name);
  fields.set("layer", layers[state.layer]);
  fields.set("head", heads[state.head]);
  if (state.token !== null) {
    const axis = heatmaps[state.layer][state.head][sideOf(state.direction)];
    fields.set("token", axis.numbers[state.token * axis.step]);
  }
  for (const [choice, value] of Object.entries(USUAL)) if (state[choice] !== value) fields.set(choice, state[choice]);
  for (const [i, j] of state.lines) fields.append("line", `${layers[i]}.${heads[j]}`);
  return `#${fields}`;
}

/** Choose what the fragment says, as far as there is such a thing. */
function obey() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const map = Math.max(
    0,
    held.sections.findIndex(({ name }) => name === fields.get("map")),
  );
  const { layers, heads, heatmaps } = held.sections[map];
  const all = new Map(layers.flatMap((i, layer) => heads.map((j, place) => [`${i}.${j}`, [layer, place]])));
  const isThere = (place) => place && heatmaps[place[0]][place[1]];
  const asked = [fields.get("layer") ?? layers[0], fields.get("head") ?? heads[0]].join(".");
  const [layer, found] = isThere(all.get(asked)) ? all.get(asked) : firstHead(map);
  const choice = ([name, values]) => [name, values.includes(fields.get(name)) ? fields.get(name) : USUAL[name]];
  Object.assign(state, { map, layer, head: found, ...Object.fromEntries(Object.entries(CHOICES).map(choice)) });
  const axis = heatmaps[layer][found][sideOf(state.direction)];
  const place = axis.numbers.findIndex((number) => `${number}` === fields.get("token"));
  state.token = place < 0 ? null : Math.floor(place / axis.step);
  state.lines = Array.from(new Set(fields.getAll("line")), (name) => all.get(name))
    .filter(isThere)
    .slice(0, MOST_LINES);
}

/** The first head that a section has. */
function firstHead(map) {
  const { heatmaps } = held.sections[map];
  const layer = heatmaps.findIndex((row) => row.some(Boolean));
  return [layer, heatmaps[layer].findIndex(Boolean)];
}

/** Go to the maps of another kind. */
function chooseMap(map) {
  const [layer, found] = firstHead(map);
  choose({ map, layer, head: found, token: null, lines: [] });
}

/** Go to the next head there is in a direction. */
function move(down, right) {
  let [i, j] = [state.layer + down, state.head + right];
  while (buttons[i]?.[j] === null) [i, j] = [i + down, j + right];
  if (buttons[i]?.[j]) choose({ layer: i, head: j });
}

/** Keep the lines of a head while others are looked at, or drop them. */
function keep(layer, place) {
  const at = lineOf(layer, place);
  if (at >= 0) choose({ lines: state.lines.filter((_, i) => i !== at) });
  else if (state.lines.length < MOST_LINES) choose({ lines: [...state.lines, [layer, place]] });
}

/** Lock a token, or unlock it if it is locked. */
function lock(side, cell) {
  const at = locked();
  const isLocked = at?.side === side && at.cell === cell;
  return choose({ direction: side === "rows" ? "to" : "by", token: isLocked ? null : cell });
}

/** Lock the token before the locked one, or after it. */
function lockNext(by) {
  const last = cellsOf(head[sideOf(state.direction)]) - 1;
  const next = state.token === null ? (by > 0 ? 0 : last) : state.token + by;
  choose({ token: Math.min(last, Math.max(0, next)) });
}

/** Lock the next token that has a number, or else a text. */
function findNext(text) {
  const wanted = text.trim().toLowerCase();
  const sides = isOneText() ? [sideOf(state.direction)] : ["rows", "columns"];
  const all = sides.flatMap((side) => Array.from({ length: cellsOf(head[side]) }, (_, cell) => ({ side, cell })));
  const numbered = ({ side, cell }) => numbersOf(head[side], cell).some((number) => `${number}` === wanted);
  const named = ({ side, cell }) => textOf(head[side], cell).toLowerCase().includes(wanted);
  const byNumber = all.filter(numbered);
  const matches = !wanted ? [] : byNumber.length ? byNumber : all.filter(named);
  const at = locked();
  const now = all.findIndex(({ side, cell }) => side === at?.side && cell === at.cell);
  const next = matches.find((one) => all.indexOf(one) > now) ?? matches[0];
  get("found").textContent = !wanted ? "" : next ? `${matches.indexOf(next) + 1} of ${matches.length}` : "none";
  if (next) choose({ direction: next.side === "rows" ? "to" : "by", token: next.cell });
}

/** Show or hide the list of keys. */
function toggleKeys(open = get("keys").hidden) {
  get("keys").hidden = !open;
  get("help").ariaExpanded = `${open}`;
}

/** Close what is open, or else unlock the token. */
function leave() {
  if (!get("keys").hidden) toggleKeys(false);
  else if (state.token !== null) choose({ token: null });
}

/** Hand a file to the reader. */
function save(blob, suffix) {
  const link = element("a", "", { href: URL.createObjectURL(blob) });
  link.download = `${section().name}-${shortName(state.layer, state.head).replace(" ", "-")}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Pointing

/** A token is pointed at in a part of the page; beside a locked one, the weight between the two is told. */
function point(side, cell, where) {
  const at = locked();
  [pointed, hovered] = [{ side, cell }, null];
  against = at && at.side !== side ? cell : null;
  renderFocus();
  reveal(at && against === null ? at : pointed, where);
}

/** Nothing is pointed at any more. */
function pointAway() {
  pointed = against = hovered = null;
  get("tip").hidden = true;
  renderFocus();
}

/** The side and the cell of a token in the text. Of one text, beside a locked token others are of the other side. */
function placeOf(token) {
  const at = locked();
  const side = !isOneText() ? token.parentElement.id : at ? across(at.side) : sideOf(state.direction);
  return [side, Number(token.dataset.cell)];
}

/** The side and the cell of the lines at a pointer. */
function lineAt({ clientX, clientY }) {
  const box = scroller.getBoundingClientRect();
  const side = clientX - box.left < box.width / 2 ? "rows" : "columns";
  const cell = Math.floor((clientY - box.top - scroller.clientTop + scroller.scrollTop) / ROW);
  return cell >= 0 && cell < cellsOf(head[side]) ? [side, cell] : null;
}

/** The row and the column of the picture at a pointer: both in a cell, one at a label, else null. */
function cellAt({ clientX, clientY }) {
  const box = get("cells").getBoundingClientRect();
  const { left, top, wide, high } = layout;
  const [x, y] = [clientX - box.left - left, clientY - box.top - top];
  const above = y < 0 ? (-GAP - y) / Math.tan(-SLANT) : 0; // labels of columns lean
  const row = Math.floor((y / high) * head.height);
  const column = Math.floor(((x - above) / wide) * head.width);
  const isRow = row >= 0 && row < head.height && x < wide;
  const isColumn = column >= 0 && column < head.width && y < high;
  if (isRow && (isColumn || x < 0)) return { row, column: isColumn ? column : null };
  return isColumn && y < 0 ? { row: null, column } : null;
}

/** The picture is pointed at: mark the cell, tell its weight. */
function pointPicture(event) {
  const found = cellAt(event);
  if (!found) return pointAway();
  const own = locked()?.side ?? sideOf(state.direction);
  const side = found.column === null ? "rows" : found.row === null ? "columns" : own;
  hovered = found;
  pointed = { side, cell: side === "rows" ? found.row : found.column };
  against = side === "rows" ? found.column : found.row;
  renderFocus();
  reveal(focus());
  showTip(event);
}

/** Say beside the pointer which cell it is at, and its weight. */
function showTip({ clientX, clientY }) {
  const tip = get("tip");
  const { row, column } = hovered;
  tip.hidden = row === null || column === null;
  if (tip.hidden) return;
  const weight = weightTold(head.codes[row * head.width + column]);
  const ends = [`query ${nameOf(head.rows, row)}`, `key ${nameOf(head.columns, column)}`];
  tip.replaceChildren(...ends.map((end) => element("div", end)), element("strong", weight));
  tip.style.left = `${Math.min(clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${clientY + 18 + tip.offsetHeight > innerHeight ? clientY - tip.offsetHeight - 10 : clientY + 18}px`;
}

// Typing

/** A key, wherever it was typed. */
function typed(event) {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || target.matches("select")) return;
  const own = target.id === "find" ? typedInBox : target.matches("[data-cell]") ? typedInText : () => false;
  if (own(key, target)) return event.preventDefault();
  if (target.id === "find" || !KEYS.has(key) || (key.startsWith("Arrow") && target.closest(OWN_ARROWS))) return;
  event.preventDefault();
  KEYS.get(key)();
}

/** A key in the box that finds tokens. Returns whether it did something. */
function typedInBox(key, box) {
  if (key === "Enter") findNext(box.value);
  else if (key === "Escape") box.blur();
  else return false;
  return true;
}

/** A key in the text goes from token to token, or locks the one in focus. Returns whether it did something. */
function typedInText(key, token) {
  const side = token.parentElement.id;
  const cell = Number(token.dataset.cell);
  const last = tokens[side].length - 1;
  if (key === "Enter" || key === " ") token.click();
  else if (Object.hasOwn(STEPS, key)) focusToken(tokens[side][Math.max(0, Math.min(last, cell + STEPS[key]))]);
  else return false;
  return true;
}

/** Put a token in focus; of a text, the Tab key reaches the one that was in focus last. */
function focusToken(token) {
  for (const other of token.parentElement.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
}

// Listening

/** Listen for an event within an element, and hand over the part of it that matches. */
function within(box, kind, selector, act) {
  box.addEventListener(kind, (event) => {
    const found = event.target.closest(selector);
    if (found) act(found, event);
  });
}

function listenToText() {
  for (const box of [get("rows"), get("columns")]) {
    within(box, "pointerover", "[data-cell]", (token) => point(...placeOf(token), box));
    within(box, "focusin", "[data-cell]", (token) => {
      point(...placeOf(token), box);
      if (against !== null) say(told().join(" "));
    });
    within(box, "click", "[data-cell]", ({ dataset }) => {
      lock(isOneText() ? sideOf(state.direction) : box.id, Number(dataset.cell));
    });
    for (const kind of ["pointerleave", "focusout"]) box.addEventListener(kind, pointAway);
  }
}

function listenToPictures() {
  within(get("heads"), "click", "button", ({ dataset }, { ctrlKey, shiftKey, metaKey }) => {
    const [layer, found] = [Number(dataset.layer), Number(dataset.head)];
    if (ctrlKey || shiftKey || metaKey) keep(layer, found);
    else choose({ layer, head: found });
  });
  get("picture").addEventListener("pointermove", pointPicture);
  get("picture").addEventListener("click", (event) => {
    pointPicture(event);
    if (hovered) lock(pointed.side, pointed.cell).then(() => pointPicture(event)); // a finger points but once
  });
  scroller.addEventListener("pointermove", (event) =>
    lineAt(event) ? point(...lineAt(event), scroller) : pointAway(),
  );
  scroller.addEventListener("click", (event) => lineAt(event) && lock(...lineAt(event)));
  scroller.addEventListener("scroll", renderLines);
  for (const box of [get("picture"), scroller]) box.addEventListener("pointerleave", pointAway);
}

function listenToControls() {
  document.addEventListener("keydown", typed);
  within(document, "change", "input[type=radio]", ({ name, value }) => choose({ [name]: value }));
  get("map").addEventListener("change", ({ target }) => chooseMap(target.selectedIndex));
  get("help").addEventListener("click", () => toggleKeys());
  get("keep").addEventListener("click", () => keep(state.layer, state.head));
  get("csv").addEventListener("click", () => {
    save(
      new Blob([table(head, section().layers[state.layer], section().heads[state.head])], { type: "text/csv" }),
      "csv",
    );
  });
  get("png").addEventListener("click", () =>
    portrait(head, colours, inks, captionOf(head)).toBlob((blob) => save(blob, "png")),
  );
}

function listenToWindow() {
  addEventListener("hashchange", () => {
    obey();
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
  new ResizeObserver(() => get("picture").clientWidth !== layout.within && render()).observe(get("picture"));
}

/** Say once what holds for the whole page. */
function introduce() {
  paragraphs(get("notes"), held.caption);
  get("map").append(...held.sections.map(({ name }) => element("option", name)));
  get("map-choice").hidden = held.sections.length < 2;
  const most = Math.max(...held.sections.map(({ full, signed }) => (signed ? 2 : 1) * full));
  const cells = `${held.sections[0].cell}s`;
  const near = held.exact
    ? `the ${cells} as float16, at most 1 part in 2000 off`
    : `within ${tidy(0.004 * most)} of the ${cells}`;
  get("precision").textContent = `Numbers on this page are ${near}.`;
}

/** Begin. */
async function begin() {
  introduce();
  obey();
  await show();
  for (const listen of [listenToText, listenToPictures, listenToControls, listenToWindow]) listen();
  document.documentElement.dataset.ready = "true";
  performance.mark("ready");
}

begin().catch((error) => {
  get("told").textContent = `This page could not be read: ${error.message}. It needs a browser of 2024 or later.`;
});
window.attnviz = { show: (map, layer, place) => choose({ map, layer, head: place, lines: [] }) };
