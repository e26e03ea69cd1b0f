// What is drawn of a stage: a tree of groups (repeated blocks, kernels), open or folded.

const FEW = 24; // inputs that are drawn without being asked for

class Tree {
  constructor(stage, options) {
    this.stage = stage;
    this.options = options; // { inputs, storage }: whether these are drawn
    this.root = group("graph", "", null);
    this.root.open = true;
    this.itemOf = new Map(); // leaf or region -> its item
    this.place(this.root, 0, stage.data.rows.length, stage.data.folds);
    this.placeInputs();
    this.arrange();
  }

  // Nodes `start` to `stop` of the stage, with the blocks among them, as children of `into`.
  place(into, start, stop, folds) {
    const at = this.positions();
    let next = start;
    for (const blocks of folds) {
      blocks.forEach(([low, high, label, inside], number) => {
        for (; next < low; next++) this.placeRow(into, at[next]);
        const made = group("block", label, into);
        Object.assign(made, { number, count: blocks.length });
        into.children.push(made);
        this.place(made, low, high, inside);
        next = high;
      });
    }
    for (; next < stop; next++) this.placeRow(into, at[next]);
  }

  // Leaves, or a region, by position in the stage.
  positions() {
    if (this._at) return this._at;
    this._at = this.stage.data.rows.map(() => null);
    for (const region of this.stage.regions) this._at[region.position] = region;
    for (const leaf of this.stage.leaves)
      if (!leaf.region && leaf.position >= 0) this._at[leaf.position] = leaf;
    return this._at;
  }

  placeRow(into, maker) {
    if (!maker.leaves) {
      this.placeLeaf(into, maker);
      return;
    }
    const made = group("kernel", maker.name, into);
    made.maker = maker;
    this.itemOf.set(maker, made);
    into.children.push(made);
    for (const leaf of maker.leaves) this.placeLeaf(made, leaf);
  }

  placeLeaf(into, leaf) {
    const item = { type: "leaf", maker: leaf, parent: into };
    this.itemOf.set(leaf, item);
    into.children.push(item);
  }

  // An input stands in the innermost group that holds all its readers, before them; a few that are no
  // parameters stand outside, where one looks for them.
  placeInputs() {
    const readers = grouped(
      this.stage.wires.filter((wire) => wire.from.kind === "input"),
      (wire) => wire.from,
    );
    const inputs = this.stage.leaves.filter((leaf) => leaf.kind === "input");
    const plain = inputs.filter((leaf) => leaf.op === "input" || leaf.op === "tangent");
    this.fewInputs = new Set(plain.length <= FEW ? plain : []);
    for (const leaf of inputs.reverse()) {
      const items = this.fewInputs.has(leaf)
        ? []
        : (readers.get(leaf) ?? []).map((wire) => this.itemOf.get(wire.to));
      const into = items.length
        ? items.map((item) => outsideKernel(item.parent)).reduce(shared)
        : this.root;
      const item = { type: "leaf", maker: leaf, parent: into };
      this.itemOf.set(leaf, item);
      into.children.unshift(item);
    }
  }

  isHidden(item) {
    const { kind } = item.maker;
    if (kind === "storage") return !this.options.storage;
    return kind === "input" && !this.options.inputs && !this.fewInputs.has(item.maker);
  }

  // Counts, and the flags that say what is drawn; after options changed.
  arrange() {
    const count = (item) => {
      if (item.type === "leaf")
        return (item.hidden = this.isHidden(item)) || item.maker.kind === "input" ? 0 : 1;
      item.leaves = item.children.reduce((sum, child) => sum + count(child), 0);
      item.hidden = item.leaves === 0 && item.children.every((child) => child.hidden);
      return item.leaves;
    };
    count(this.root);
    this.dirty = true;
  }

  // The item drawn for a leaf or region: itself, or the folded group around it.
  shown(maker) {
    let found = this.itemOf.get(maker);
    for (let item = found; item; item = item.parent)
      if (item.parent && !item.parent.open) found = item.parent;
    return found;
  }

  reveal(maker) {
    for (let item = this.itemOf.get(maker)?.parent; item; item = item.parent)
      this.setOpen(item, true);
  }

  setOpen(item, open) {
    if (item.type === "leaf" || item === this.root || item.open === open) return;
    item.open = open;
    this.dirty = true;
  }

  setAll(open, type) {
    const visit = (item) => {
      if (item.type === "leaf") return;
      if (!type || item.type === type) this.setOpen(item, open);
      item.children.forEach(visit);
    };
    visit(this.root);
  }

  // How many boxes are drawn, nodes stand for, and groups are folded.
  counts() {
    const found = { boxes: 0, folded: 0 };
    const visit = (item) => {
      if (item.hidden) return;
      const folded = item.type !== "leaf" && !item.open;
      if (folded && item.type === "block") found.folded++;
      if (item.type === "leaf" || folded) found.boxes++;
      else item.children.forEach(visit);
    };
    visit(this.root);
    return { ...found, nodes: this.root.leaves };
  }
}

function group(type, label, parent) {
  return { type, label, parent, children: [], open: false, depth: parent ? parent.depth + 1 : 0 };
}

function outsideKernel(item) {
  return item.type === "kernel" ? item.parent : item;
}

// The innermost group around both.
function shared(a, b) {
  while (a !== b) {
    if (a.depth >= b.depth) a = a.parent;
    else b = b.parent;
  }
  return a;
}

// --- edges between what is drawn ---------------------------------------------------------------

// Every value that passes between drawn items, as links within each open group: from a child or an
// entrance (`in`) to a child or an exit (`out`).
function linksOf(tree) {
  const groups = new Map(); // group -> { links, entrances, exits }
  const of = (item) => {
    if (!groups.has(item))
      groups.set(item, { links: new Map(), entrances: new Map(), exits: new Map() });
    return groups.get(item);
  };
  for (const wire of tree.stage.wires) {
    const from = tree.shown(wire.from),
      to = tree.shown(wire.to);
    if (from === to || from.hidden || to.hidden) continue;
    connect(from, to, `${wire.from.id} ${wire.value}`, wire.value, of);
  }
  return of;
}

// `key` tells values of one name apart: in a kernel and outside.
function connect(from, to, key, value, of) {
  const lca = shared(from.parent, to.parent);
  let start = { item: from, value: null };
  for (let inside = from.parent; inside !== lca; inside = inside.parent) {
    const exit = port(of(inside).exits, key, "exit", inside);
    join(of(inside).links, start, { item: exit }, key, value);
    start = { item: inside, value: key };
  }
  let end = { item: to, value: null };
  for (let inside = to.parent; inside !== lca; inside = inside.parent) {
    const entrance = port(of(inside).entrances, key, "entrance", inside);
    join(of(inside).links, { item: entrance }, end, key, value);
    end = { item: inside, value: key };
  }
  join(of(lca).links, start, end, key, value);
}

function port(ports, key, type, inside) {
  if (!ports.has(key)) ports.set(key, { type, key, parent: inside });
  return ports.get(key);
}

// One link a pair of ends and value, however many nodes inside of a folded group read it.
function join(links, start, end, key, value) {
  const id = `${uid(start.item)} ${uid(end.item)} ${key}`;
  if (!links.has(id))
    links.set(id, { from: start.item, out: start.value, to: end.item, into: end.value, value });
}

let lastUid = 0;
function uid(item) {
  return (item.uid ??= ++lastUid);
}
