// Drawing a laid-out tree on a canvas, no more of it than can be seen.

const FONT = 'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
const FATES = ["ours", "aten", "view", "constant", "storage", "input", "gone"];
const WIDEST = 250;

// Colours of the style sheet, read again when the theme changes.
let inks = null;
function ink() {
  if (inks) return inks;
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  inks = Object.fromEntries(
    ["page", "panel", "ink", "soft", "line", "wire", "accent", "match", "frame", "block"].map(
      (n) => [n, read(n)],
    ),
  );
  inks.fate = Object.fromEntries(FATES.map((fate) => [fate, read(`fate-${fate}`)]));
  inks.tint = Object.fromEntries(FATES.map((fate) => [fate, read(`tint-${fate}`)]));
  return inks;
}

const measure = (() => {
  const context = document.createElement("canvas").getContext("2d"),
    known = new Map();
  return (text, font) => {
    const key = font + text;
    if (!known.has(key)) {
      context.font = font;
      known.set(key, context.measureText(text).width);
    }
    return known.get(key);
  };
})();

const TITLE = `600 12.5px ${FONT}`,
  SUB = `10.5px ${MONO}`,
  SMALL = `11px ${MONO}`;

function shortened(text, font, most) {
  if (measure(text, font) <= most) return text;
  let keep = Math.max(1, Math.floor((text.length * most) / measure(text, font)));
  while (keep > 1 && measure(`${text.slice(0, keep)}…`, font) > most) keep--;
  return `${text.slice(0, keep)}…`;
}

class Painter {
  constructor(pane) {
    this.pane = pane;
    this.context = pane.canvas.getContext("2d");
  }

  paint() {
    const { context: c, pane } = this,
      { camera, tree } = pane;
    const ratio = devicePixelRatio || 1;
    this.colours = ink();
    this.scale = camera.scale;
    this.fine = camera.scale > 0.12;
    this.legible = camera.scale > 0.42;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.fillStyle = this.colours.page;
    c.fillRect(0, 0, pane.canvas.width, pane.canvas.height);
    c.setTransform(
      ratio * camera.scale,
      0,
      0,
      ratio * camera.scale,
      -camera.x * camera.scale * ratio,
      -camera.y * camera.scale * ratio,
    );
    this.view = {
      x: camera.x,
      y: camera.y,
      right: camera.x + camera.width / camera.scale,
      bottom: camera.y + camera.height / camera.scale,
    };
    this.lit = []; // lines drawn again on top
    this.group(tree.root, 0, 0);
    this.lights();
  }

  group(group, x, y) {
    const [first, last] = this.layersSeen(group, y);
    this.lines(group, x, y, first, last);
    for (let i = first; i <= last; i++) {
      for (const item of group.layers[i].items) {
        const left = x + item.x;
        if (left > this.view.right || left + item.w < this.view.x) continue;
        if (y + item.y + item.h < this.view.y) continue;
        this.item(item, left, y + item.y);
      }
    }
  }

  layersSeen(group, y) {
    const { layers } = group;
    const first = lowest(layers.length, (i) => y + layers[i].y + layers[i].h >= this.view.y);
    const last = lowest(layers.length, (i) => y + layers[i].y > this.view.bottom) - 1;
    return [first, last];
  }

  item(item, x, y) {
    if (item.type !== "leaf" && item.open) this.frame(item, x, y);
    else this.box(item, x, y);
  }

  frame(item, x, y) {
    const { context: c, colours } = this,
      kernel = item.type === "kernel";
    c.fillStyle = kernel ? colours.tint.ours : colours.frame;
    c.strokeStyle = kernel ? colours.fate.ours : colours.line;
    rounded(c, x, y, item.w, item.h, 8);
    c.fill();
    this.outline(item, kernel ? 1 : 1.2);
    if (item.h * this.scale < 24) return;
    if (this.legible) {
      c.fillStyle = colours.soft;
      c.font = TITLE;
      c.textBaseline = "middle";
      c.fillText("−", x + 10, y + SIZE.head / 2 + 1);
      c.fillText(
        shortened(this.pane.labels(item).title, TITLE, item.w - 36),
        x + 24,
        y + SIZE.head / 2 + 1,
      );
    }
    this.group(item, x, y);
  }

  box(item, x, y) {
    const { context: c, colours } = this,
      fate = this.pane.fate(item);
    const block = item.type === "block";
    if (!this.fine) {
      c.fillStyle = block ? colours.block : colours.fate[fate];
      c.fillRect(x, y, item.w, item.h);
      if (this.pane.mark(item)) {
        c.strokeStyle = this.markColour(item);
        c.lineWidth = 3 / this.scale;
        c.strokeRect(x, y, item.w, item.h);
      }
      return;
    }
    if (block) this.pile(x, y, item);
    c.fillStyle = block
      ? colours.panel
      : item.type === "kernel"
        ? colours.tint.ours
        : fate === "input"
          ? colours.tint.input
          : colours.panel;
    c.strokeStyle = colours.line;
    rounded(c, x, y, item.w, item.h, fate === "input" ? 11 : 6);
    c.fill();
    this.outline(item, 1, fate === "gone");
    if (fate !== "input") {
      c.fillStyle = block ? colours.block : colours.fate[fate];
      rounded(c, x, y, 5, item.h, [6, 0, 0, 6]);
      c.fill();
    }
    if (block) this.mixture(item, x + 13, y + item.h - 9, item.w - 24);
    if (this.legible) this.words(item, x, y, fate);
  }

  mixture(item, x, y, width) {
    for (const [fate, share] of this.pane.mixture(item)) {
      this.context.fillStyle = this.colours.fate[fate];
      this.context.fillRect(x, y, share * width, 4);
      x += share * width;
    }
  }

  // A folded block looks like some sheets on each other.
  pile(x, y, item) {
    const { context: c, colours } = this;
    c.fillStyle = colours.frame;
    c.strokeStyle = colours.line;
    c.lineWidth = 1;
    for (const by of [6, 3]) {
      rounded(c, x + by, y + by, item.w, item.h, 6);
      c.fill();
      c.stroke();
    }
  }

  outline(item, width, dashed = false) {
    const { context: c } = this,
      marked = this.pane.mark(item);
    if (marked) c.strokeStyle = this.markColour(item);
    c.lineWidth = marked ? Math.max(2.2, 2 / this.scale) : width;
    if (dashed) c.setLineDash([4, 3]);
    c.stroke();
    c.setLineDash([]);
  }

  markColour(item) {
    return this.pane.mark(item) === "match" ? this.colours.match : this.colours.accent;
  }

  words(item, x, y, fate) {
    const { context: c, colours } = this,
      { title, sub } = this.pane.labels(item);
    c.textBaseline = "middle";
    if (fate === "input") {
      c.font = SMALL;
      c.fillStyle = colours.soft;
      c.fillText(title, x + 11, y + item.h / 2 + 0.5);
      return;
    }
    c.font = TITLE;
    c.fillStyle = colours.ink;
    c.fillText(title, x + 13, y + 13.5);
    c.font = SUB;
    c.fillStyle = colours.soft;
    c.fillText(sub, x + 13, y + (item.type === "block" ? 27 : 28));
    if (item.type !== "leaf") {
      c.font = TITLE;
      c.fillText("+", x + item.w - 15, y + 13.5);
    }
    if (this.pane.leaves(item)) {
      // its value leaves the graph
      c.fillStyle = colours.soft;
      c.beginPath();
      c.moveTo(x + item.w / 2 - 5, y + item.h + 2);
      c.lineTo(x + item.w / 2 + 5, y + item.h + 2);
      c.lineTo(x + item.w / 2, y + item.h + 8);
      c.fill();
    }
  }

  // --- lines

  lines(group, x, y, first, last) {
    const { context: c } = this;
    const at = lineIndex(group);
    c.strokeStyle = this.colours.wire;
    c.lineWidth = Math.max(1, 0.7 / this.scale);
    c.beginPath();
    const stamp = {};
    for (let i = Math.max(0, first - 1); i <= Math.min(last, at.length - 1); i++) {
      for (const line of at[i] ?? []) {
        if (line.stamp === stamp) continue;
        line.stamp = stamp;
        if (this.pane.lit(line)) this.lit.push([line, x, y]);
        else this.trace(line, x, y);
      }
    }
    c.stroke();
  }

  lights() {
    const { context: c } = this;
    c.strokeStyle = this.colours.accent;
    c.fillStyle = this.colours.accent;
    c.lineWidth = Math.max(1.6, 1.4 / this.scale);
    c.beginPath();
    for (const [line, x, y] of this.lit) this.trace(line, x, y, true);
    c.stroke();
  }

  trace(line, x, y, whole = false) {
    const { context: c } = this,
      { points: p } = line;
    const n = p.length;
    if (line.far && !whole) {
      // two ends of what is too far to follow
      c.moveTo(x + p[0], y + p[1]);
      c.lineTo(x + p[0], y + p[1] + 10);
      c.moveTo(x + p[n - 2], y + p[n - 1] - 10);
      c.lineTo(x + p[n - 2], y + p[n - 1]);
      return;
    }
    c.moveTo(x + p[0], y + p[1]);
    for (let i = 2; i < n; i += 2) {
      if (p[i] === p[i - 2] || !this.fine) {
        c.lineTo(x + p[i], y + p[i + 1]);
        continue;
      }
      const half = (p[i - 1] + p[i + 1]) / 2;
      c.bezierCurveTo(x + p[i - 2], y + half, x + p[i], y + half, x + p[i], y + p[i + 1]);
    }
    if (this.legible && line.to.type !== "exit" && line.to.type !== "entrance")
      this.tip(x + p[n - 2], y + p[n - 1]);
  }

  tip(x, y) {
    const { context: c } = this;
    c.moveTo(x - 3, y - 5);
    c.lineTo(x, y);
    c.lineTo(x + 3, y - 5);
  }
}

// For each layer the lines that begin there or pass.
function lineIndex(group) {
  if (group.lineAt) return group.lineAt;
  const at = group.layers.map(() => []);
  for (const line of group.lines) {
    if (line.far) {
      at[line.first].push(line);
      at[Math.max(0, line.last - 1)].push(line);
      continue;
    }
    for (let layer = line.first; layer < line.last; layer++) at[layer].push(line);
  }
  return (group.lineAt = at);
}

function rounded(context, x, y, w, h, radius) {
  context.beginPath();
  context.roundRect(x, y, w, h, radius);
}

// The lowest number below `count` that fits, where all above one that fits do; `count` if none.
function lowest(count, fits) {
  let low = 0,
    high = count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (fits(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}
