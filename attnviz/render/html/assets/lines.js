// Lines from queries to keys, for the part of the two columns of tokens that can be seen.

const ROW = 20; // CSS pixels of a token
const FAINTEST = 0.1;
const FAINTEST_OF_ONE = 0.02; // as opaque as a line must be to be drawn, and as those of one token
const DEPTHS = 16; // opacities that lines are drawn with, each in one go
const STRIPE = 6;
const DASH = [5, 4];
const HEAD_COLOURS = ["#3b82d6", "#d98200", "#1f9e6e", "#a25fd0", "#17a2b8", "#8a7f2a", "#a0673a", "#808890"];
const MOST_LINES = HEAD_COLOURS.length - 1; // heads that are kept beside the one that is shown

/** The weight that makes a line opaque: the end of the scale that goes furthest, so that heads can be compared. */
const opaque = (heads, range) => Math.max(...heads.map((head) => head.section.weights[head[range]])) || 1;

/** How opaque a code is, in DEPTHS steps, below 0 where the weight is; 0 is not drawn. */
function depths(weights, { most, faintest, linear }) {
  return Int8Array.from(weights, (weight) =>
    Math.abs(weight) >= most * faintest ? Math.sign(weight) * Math.ceil(level(weight, most, linear) * DEPTHS) : 0,
  );
}

/** Tokens of a side that can be seen: from the first to before the second. */
function inView(cells, scrolled, height) {
  return [Math.max(0, Math.floor(scrolled / ROW)), Math.min(cells, Math.ceil((scrolled + height) / ROW))];
}

/** Call back with row, column and depth for each line that begins or ends in view, or is one of the focus. */
function eachLine(head, depth, focus, rows, columns, draw) {
  const visit = (i, j) => {
    const found = depth[head.codes[i * head.width + j]];
    if (found) draw(i, j, found);
  };
  if (focus?.side === "rows") for (let j = 0; j < head.width; j++) visit(focus.cell, j);
  else if (focus) for (let i = 0; i < head.height; i++) visit(i, focus.cell);
  else {
    for (let i = 0; i < head.height; i++) {
      const seen = i >= rows[0] && i < rows[1];
      const [first, last] = seen ? [0, head.width] : columns;
      for (let j = first; j < last; j++) visit(i, j);
    }
  }
}

/** Draw the lines of a head, those of the same opacity in one go; negative differences are dashed. */
function drawHeadLines(context, head, depth, place, focus, view) {
  const paths = Array.from({ length: 2 * DEPTHS + 1 }, () => new Path2D());
  const { left, right, rows, columns, y } = view;
  eachLine(head, depth, focus, rows, columns, (i, j, found) => {
    paths[DEPTHS + found].moveTo(left, y(i));
    paths[DEPTHS + found].lineTo(right, y(j));
  });
  context.strokeStyle = context.fillStyle = colourOf(head.layer, head.head);
  context.lineWidth = focus ? 1.75 : 1;
  paths.forEach((path, place) => {
    context.setLineDash(place < DEPTHS ? DASH : []);
    context.globalAlpha = Math.abs(place - DEPTHS) / DEPTHS;
    context.stroke(path);
  });
  context.setLineDash([]);
  if (focus) {
    // a stripe at the other end, since lines may overlap
    eachLine(head, depth, focus, rows, columns, (i, j, found) => {
      const [x, cell] = focus.side === "rows" ? [right + STRIPE * place, j] : [left - STRIPE * (place + 1), i];
      context.globalAlpha = Math.abs(found) / DEPTHS;
      context.fillRect(x, y(cell) - ROW / 2 + 2, STRIPE - 1, ROW - 4);
    });
  }
  context.globalAlpha = 1;
}

/** Draw the tokens of a side that are in view; what the focus may not see is faint, the focus itself bold. */
function drawTokens(context, head, side, stripes, focus, view, inks) {
  const isLeft = side === "rows";
  const x = isLeft ? view.left - stripes : view.right + stripes;
  const { texts } = labelled(context, head[side], view.widest);
  const codes = focus && focus.side !== side ? codesAlong(head, focus) : null;
  context.textAlign = isLeft ? "right" : "left";
  context.textBaseline = "middle";
  for (let cell = view[side][0]; cell < view[side][1]; cell++) {
    const chosen = focus?.side === side && focus.cell === cell;
    context.font = chosen ? BOLD_FONT : LABEL_FONT;
    context.fillStyle = codes?.[cell] === 0 ? inks.faint : chosen || codes ? inks.ink : inks.muted;
    context.fillText(texts[cell], x, view.y(cell) + 1);
  }
}

/** Draw both columns of tokens and the lines of heads, all of one size; of a focus its lines alone. */
function drawLines(context, { width, height, scrolled }, opacity, heads, inks, focus) {
  const [first] = heads;
  const stripes = focus ? STRIPE * heads.length + 2 : 4;
  const widest = Math.round(0.33 * width);
  const beside = STRIPE * heads.length + 2 * GAP;
  const view = {
    widest,
    left: labelled(context, first.rows, widest).room + beside,
    right: width - labelled(context, first.columns, widest).room - beside,
    rows: inView(first.height, scrolled, height),
    columns: inView(first.width, scrolled, height),
    y: (cell) => (cell + 0.5) * ROW - scrolled,
  };
  context.clearRect(0, 0, width, height);
  const depth = depths(first.section.weights, opacity);
  heads.forEach((head, place) => drawHeadLines(context, head, depth, place, focus, view));
  for (const name of ["rows", "columns"]) {
    const other = focus && focus.side !== name;
    drawTokens(context, first, name, other ? stripes : 4, focus, view, inks);
  }
}
