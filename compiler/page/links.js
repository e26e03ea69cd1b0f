// The same node in another stage, by what passes said became of its name.

class Links {
  constructor(model) {
    this.model = model;
    this.then = model.report.passes.map((row) => row.renamed);
  }

  // Leaves and regions of stage `to` that are what `name` was in stage `from`.
  follow(name, from, to) {
    let names = [name];
    for (let at = from; at < to; at++) names = unique(names.flatMap((n) => this.after(n, at + 1)));
    for (let at = from; at > to; at--) names = unique(names.flatMap((n) => this.before(n, at)));
    const { byName } = this.model.stages[to].graph;
    return unique(names.flatMap((n) => byName.get(n) ?? []));
  }

  // A pass that fuses says that a node became its kernel; inside, the node still has its name.
  after(name, pass) {
    if (this.model.stages[pass].graph.byName.has(name)) return [name];
    return this.then[pass][name] ?? [];
  }

  before(name, pass) {
    const { byName } = this.model.stages[pass - 1].graph;
    const here = byName.has(name) ? [name] : [];
    if (here.length) return here;
    return (this.backwards(pass).get(name) ?? []).filter((old) => byName.has(old));
  }

  backwards(pass) {
    this._backwards ??= [];
    return (this._backwards[pass] ??= inverted(this.then[pass]));
  }

  // What becomes of a node in the end: ours, aten, view, constant, storage, input, gone.
  fate(maker, stage) {
    if (maker.leaves) return "ours";
    if (maker.kind === "input" || maker.kind === "storage") return maker.kind;
    const last = this.model.stages.length - 1;
    const found = stage === last ? [maker] : this.follow(maker.name, stage, last);
    if (found.some((leaf) => leaf.leaves || leaf.region)) return "ours";
    const leaf = found[0];
    if (!leaf || leaf.kind === "input") return "gone";
    if (leaf.op === "rw.constant" || leaf.op === "rw.frozen") return "constant";
    return this.model.kernelOf.has(leaf.name) ? "aten" : "view";
  }
}

function inverted(renamed) {
  const found = new Map();
  for (const [old, names] of Object.entries(renamed)) {
    for (const name of names) found.has(name) ? found.get(name).push(old) : found.set(name, [old]);
  }
  return found;
}

function unique(items) {
  return items.length < 2 ? items : [...new Set(items)];
}
