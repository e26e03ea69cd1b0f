// One graph on the screen: a stage, its tree, the camera, and what is marked in it.

class Pane {
  // `app` is the graph part of the page: it hears of clicks, and what both panes share is there.
  constructor(app, index) {
    this.app = app;
    this.canvas = el("canvas", {
      tabindex: 0,
      "aria-label": "The graph: drag to move, wheel to zoom, arrow keys to follow values",
    });
    this.pick = el("select", {
      "aria-label": "Stage",
      onchange: () => this.setStage(Number(this.pick.value)),
    });
    this.status = el("span", { class: "status" });
    this.hint = el("div", { class: "hint", hidden: true });
    this.holder = el("div", { class: "canvas" }, this.canvas, this.hint);
    this.element = el(
      "div",
      { class: "pane" },
      el("div", { class: "panehead" }, this.pick, this.status),
      this.holder,
    );
    this.camera = new Camera(this.canvas, () => this.redraw());
    this.painter = new Painter(this);
    this.options = { inputs: false, storage: false };
    this.matches = new Set();
    this.same = []; // what is chosen in the other pane
    this.trees = new Map();
    this.listStages(index);
    this.listen();
    this.index = index;
    this.load();
    sized(this.holder, (width, height) => this.resize(width, height));
  }

  listStages(index) {
    const options = this.app.model.stages.map((stage) => {
      const same = stage.same ? " (as before)" : "";
      return el(
        "option",
        { value: stage.index },
        stage.index ? `after ${stage.name}${same}` : "as it came",
      );
    });
    this.pick.append(...options);
    this.pick.value = index;
  }

  get stage() {
    return this.app.model.stages[this.index].graph;
  }

  setStage(index) {
    const selected = this.selected?.name;
    const from = this.index;
    this.index = index;
    this.pick.value = index;
    this.load();
    if (this.canvas.width > 1) this.begin();
    const found = selected ? this.app.model.links.follow(selected, from, index)[0] : null;
    if (found) this.show(found);
    this.app.stageChanged(this);
  }

  load() {
    const stage = this.stage;
    if (!this.trees.has(stage)) this.trees.set(stage, new Tree(stage, this.options));
    this.tree = this.trees.get(stage);
    this.tree.options = this.options;
    this.tree.arrange();
    this.fates = new Map();
    this.texts = new Map();
    this.selected = null;
    this.lighted = null;
    this.refresh();
  }

  // Lays out again, keeping `still` (an item) where it is on the screen.
  refresh(still) {
    const before = still && this.placeOf(still);
    if (this.tree.dirty) layOut(this.tree, (item) => this.labels(item));
    const after = still && this.placeOf(still);
    if (before && after) {
      this.camera.x += after.x - before.x;
      this.camera.y += after.y - before.y;
    }
    this.marks = null;
    const { boxes, nodes, folded } = this.tree.counts();
    this.status.textContent =
      `${plural(boxes, "box", "boxes")} for ${plural(nodes, "node")}` +
      (folded ? `, ${plural(folded, "block")} folded` : "");
    Object.assign(this.element.dataset, { boxes, nodes, folded });
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      if (this.canvas.width > 1) this.painter.paint();
    });
  }

  resize(width, height) {
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1,
      fresh = this.canvas.width <= 1 || !this.sized;
    Object.assign(this.canvas, {
      width: Math.round(width * ratio),
      height: Math.round(height * ratio),
    });
    Object.assign(this.camera, { width, height });
    if (fresh) {
      this.sized = true;
      this.begin();
      this.wanted?.();
      this.wanted = null;
    }
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    this.painter.paint(); // at once: resizing has wiped it
  }

  // Does what needs the size of the canvas now, or when there is one.
  whenSized(act) {
    if (this.sized) act();
    else this.wanted = act;
  }

  // --- what boxes say

  labels(item) {
    let found = this.texts.get(item);
    if (!found) this.texts.set(item, (found = this.label(item)));
    return found;
  }

  label(item) {
    if (item.type === "block") return boxed(item.label, plural(item.leaves, "node"), 40);
    if (item.type === "kernel") {
      const kernel = this.app.model.kernelOf.get(item.maker.name);
      const ops = unique(
        item.maker.leaves.filter((leaf) => leaf.kind !== "view").map((leaf) => leaf.short),
      );
      return boxed(ops.join(" · ") || "copy", kernel?.function || `%${item.maker.name}`, 40);
    }
    if (item.type === "graph") return { title: "", sub: "", width: 0 };
    const { maker } = item;
    if (maker.kind === "input") {
      const title = shortened(maker.name, SMALL, WIDEST - 22);
      return { title, sub: "", width: measure(title, SMALL) + 22 };
    }
    const name = maker.name ? `%${maker.name} ` : maker.reads.map((n) => `%${n}`).join(" ");
    return boxed(maker.short, `${name}${maker.types[0] ?? ""}`, 26);
  }

  fate(item) {
    if (item.type === "block") return "view";
    let found = this.fates.get(item.maker);
    if (!found)
      this.fates.set(item.maker, (found = this.app.model.links.fate(item.maker, this.index)));
    return found;
  }

  // Of a folded block: how many of its nodes end up where, as shares in the order of `FATES`.
  mixture(item) {
    if (item.mixture) return item.mixture;
    const counts = grouped(
      leavesUnder(item).filter((leaf) => leaf.kind !== "storage" && leaf.kind !== "input"),
      (leaf) => this.fate({ maker: leaf }),
    );
    const found = FATES.filter((fate) => counts.has(fate)).map((fate) => [
      fate,
      counts.get(fate).length / item.leaves,
    ]);
    return (item.mixture = found);
  }

  leaves(item) {
    return item.type !== "block" && item.maker.names.some((name) => this.stage.returned.has(name));
  }

  // "chosen", "same" (as what is chosen beside) or "match", also for a folded group that holds one.
  mark(item) {
    if (!this.marks) {
      this.marks = new Map();
      for (const maker of this.matches) this.marks.set(this.tree.shown(maker), "match");
      for (const maker of this.same) this.marks.set(this.tree.shown(maker), "same");
      if (this.selected) this.marks.set(this.selectedItem(), "chosen");
    }
    return this.marks.get(item);
  }

  selectedItem() {
    return this.selected.type === "block" ? this.selected : this.tree.shown(this.selected);
  }

  // Whether a line belongs to what is chosen: it carries what that makes, or brings what it reads.
  lit(line) {
    const maker = this.selected;
    if (!maker || !maker.names) return false;
    this.lighted ??= {
      made: new Set(maker.names),
      read: new Set(maker.reads),
      around: this.around(maker),
    };
    const { made, read, around } = this.lighted;
    if (made.has(line.value)) return !around.has(line.to);
    return (
      read.has(line.value) &&
      (around.has(line.to) ||
        line.to.type === "exit" ||
        (around.has(line.to.parent) && line.to.type === "entrance"))
    );
  }

  around(maker) {
    const found = new Set();
    for (let item = this.tree.itemOf.get(maker); item; item = item.parent) found.add(item);
    return found;
  }

  // --- choosing

  placeOf(item) {
    let x = 0,
      y = 0;
    for (let up = item; up; up = up.parent) {
      if (up.x === undefined) return null;
      x += up.x;
      y += up.y;
    }
    return { x, y, w: item.w, h: item.h };
  }

  // Selects, opens what hides it, and moves there.
  show(maker, move = true) {
    this.tree.reveal(maker);
    const item = this.tree.itemOf.get(maker);
    if (item.hidden) this.unhide(maker);
    this.select(maker);
    this.refresh();
    if (move) this.whenSized(() => this.centre(this.tree.shown(maker)));
  }

  unhide(maker) {
    this.options = {
      inputs: this.options.inputs || maker.kind === "input",
      storage: this.options.storage || maker.kind === "storage",
    };
    this.tree.options = this.options;
    this.tree.arrange();
    this.app.optionsShown();
  }

  select(maker) {
    this.selected = maker;
    this.lighted = null;
    this.marks = null;
    this.redraw();
  }

  begin() {
    const { root } = this.tree;
    const seen = root.layers
      .filter((layer) => layer.y < this.camera.height)
      .flatMap((layer) => layer.items);
    this.camera.begin(
      root,
      seen.reduce((sum, item) => sum + item.x + item.w / 2, 0) / (seen.length || 1),
    );
  }

  centre(item, gently = true) {
    const place = this.placeOf(item),
      { camera } = this;
    if (place)
      camera.go(
        place.x + place.w / 2,
        place.y + Math.min(place.h, camera.height) / 2,
        Math.max(camera.scale, 0.75),
        gently,
      );
  }

  setSame(found) {
    this.same = found;
    this.marks = null;
    this.redraw();
  }

  setMatches(found) {
    this.matches = new Set(found);
    this.marks = null;
    this.redraw();
  }

  toggle(item, open = !item.open) {
    this.tree.setOpen(item, open);
    this.refresh(item);
  }

  setAll(open) {
    this.tree.setAll(open, open ? undefined : "block");
    if (!open) this.tree.setAll(false, "kernel");
    this.refresh();
    if (this.selected) this.centre(this.selectedItem(), false);
    else this.begin();
  }

  setOptions(options) {
    this.options = options;
    this.tree.options = options;
    this.tree.arrange();
    this.refresh();
  }

  // --- events

  listen() {
    this.canvas.addEventListener("click", (event) => {
      if (this.camera.moved) return;
      this.clicked(this.at(event.offsetX, event.offsetY));
    });
    this.canvas.addEventListener("dblclick", (event) => {
      const hit = this.at(event.offsetX, event.offsetY);
      if (hit?.item.type === "kernel") this.toggle(hit.item);
    });
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => {
      this.hint.hidden = true;
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  clicked(hit) {
    if (!hit) {
      this.app.chose(this, null);
      return;
    }
    const { item, glyph } = hit;
    if (item.type === "block" && (!item.open || glyph)) {
      this.toggle(item);
      this.app.chose(this, item);
    } else if (item.type === "kernel" && glyph) this.toggle(item);
    else this.app.chose(this, item.type === "block" ? item : item.maker);
  }

  hover(event) {
    const hit = event.buttons ? null : this.at(event.offsetX, event.offsetY);
    this.canvas.style.setProperty("cursor", hit ? "pointer" : "grab");
    this.hint.hidden = !hit || this.camera.scale > 0.42;
    if (this.hint.hidden) return;
    const { title, sub } = this.labels(hit.item);
    this.hint.textContent = `${title}  ${sub}`;
    this.hint.style.setProperty(
      "left",
      `${Math.min(event.offsetX + 14, this.camera.width - 200)}px`,
    );
    this.hint.style.setProperty("top", `${event.offsetY + 14}px`);
  }

  // The innermost item at a point of the canvas; `glyph` when it is the sign that opens or folds it.
  at(px, py) {
    const [x, y] = this.camera.world(px, py);
    let group = this.tree.root,
      left = 0,
      top = 0,
      hit = null;
    while (group) {
      const { layers } = group;
      const number = lowest(layers.length, (i) => top + layers[i].y > y) - 1;
      const item =
        number < 0
          ? null
          : layers[number].items.find(
              (each) =>
                x >= left + each.x &&
                x <= left + each.x + each.w &&
                y >= top + each.y &&
                y <= top + each.y + each.h,
            );
      if (!item) return hit;
      left += item.x;
      top += item.y;
      const open = item.type !== "leaf" && item.open;
      const corner = x > left + item.w - 22 && y < top + 22;
      hit = { item, glyph: item.type !== "leaf" && (open ? y < top + SIZE.head : corner) };
      group = open ? item : null;
    }
    return hit;
  }

  key(event) {
    const { camera } = this;
    const steps = {
      ArrowUp: "reads",
      ArrowDown: "readers",
      ArrowLeft: "before",
      ArrowRight: "behind",
    };
    const acts = {
      "+": () => camera.zoom(1.3),
      "=": () => camera.zoom(1.3),
      "-": () => camera.zoom(1 / 1.3),
      0: () => camera.fit(this.tree.root),
      Enter: () => this.selected && this.toggleSelected(),
      Escape: () => this.app.chose(this, null),
    };
    if (steps[event.key]) this.step(steps[event.key]);
    else if (acts[event.key]) acts[event.key]();
    else return;
    event.preventDefault();
  }

  toggleSelected() {
    const item =
      this.selected.type === "block" ? this.selected : this.tree.itemOf.get(this.selected);
    const group = item.type === "leaf" ? item.parent : item;
    if (group !== this.tree.root) this.toggle(group);
  }

  // To what the chosen node reads, to who reads it, or along the schedule.
  step(where) {
    const maker = this.selected?.names ? this.selected : null;
    const { leaves, wires } = this.stage;
    const drawn = (leaf) => leaf && !this.isHidden(leaf);
    let next = null;
    if (!maker) next = leaves.find((leaf) => leaf.position >= 0 && drawn(leaf));
    else if (where === "reads")
      next = wires.find((w) => partOf(w.to, maker) && drawn(w.from))?.from;
    else if (where === "readers")
      next = wires.find((w) => partOf(w.from, maker) && !partOf(w.to, maker) && drawn(w.to))?.to;
    else {
      const step = where === "before" ? -1 : 1;
      let id = (maker.leaves ? maker.leaves[0] : maker).id + step;
      while (leaves[id] && !drawn(leaves[id])) id += step;
      next = leaves[id];
    }
    if (next) this.app.chose(this, next, true);
  }

  isHidden(leaf) {
    return this.tree.itemOf.get(leaf).hidden;
  }
}

function boxed(title, sub, room) {
  const first = shortened(title, TITLE, WIDEST - room),
    second = shortened(sub, SUB, WIDEST - 24);
  return {
    title: first,
    sub: second,
    width: Math.max(88, measure(first, TITLE) + room, measure(second, SUB) + 24),
  };
}

function partOf(leaf, maker) {
  return leaf === maker || leaf.region === maker;
}
