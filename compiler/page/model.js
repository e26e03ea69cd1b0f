// The record's data, looked up: stages with their nodes, kernels, decisions.

const ROW = { op: 0, kind: 1, names: 2, types: 3, reads: 4, loc: 5, phase: 6, text: 7, body: 8 };

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(inflated).text());
}

class Model {
  constructor(data) {
    this.data = data;
    this.report = data.report;
    this.rows = data.rows;
    // A stage that left the graph as it was shares all that is known of it.
    let last = null;
    this.stages = data.stages.map((stage, index) => {
      last = stage.same ? last : new Stage(this, stage, index);
      return {
        spec: stage.spec,
        name: stage.spec.split("{")[0],
        index,
        graph: last,
        same: Boolean(stage.same),
      };
    });
    this.links = new Links(this);
    this.kernelOf = new Map();
    this.report.kernels.forEach((kernel, index) => {
      kernel.index = index;
      this.kernelOf.set(kernel.name, kernel);
    });
    this.nodeOf = new Map(this.report.nodes.map((node) => [node.name, node]));
    this.decisionsOn = grouped(this.report.decisions, (decision) => decision.subject);
    this.measured =
      this.report.kernels.length > 0 &&
      this.report.kernels.every((kernel) => kernel.measured_seconds !== null);
    this.total = this.report.kernels.reduce((sum, kernel) => sum + this.seconds(kernel), 0);
  }

  get first() {
    return this.stages[0].graph;
  }
  get final() {
    return this.stages.at(-1).graph;
  }

  decisions(names) {
    return names.flatMap((name) => this.decisionsOn.get(name) ?? []);
  }

  // The line of source at a place, if the compile saw it.
  code(loc) {
    return this.report.sources[loc] ?? "";
  }

  // What a call takes: measured where all were, else predicted.
  seconds(kernel) {
    return this.measured ? kernel.measured_seconds : kernel.predicted_seconds;
  }

  share(kernel) {
    return this.total > 0 ? this.seconds(kernel) / this.total : 0;
  }
}

// A graph: its nodes as leaves, those inside kernels too, and the values that pass between them.
class Stage {
  constructor(model, data, index) {
    Object.assign(this, { model, data, index });
    this.returned = new Set(data.returned);
  }

  get built() {
    return (this._built ??= build(this));
  }
  get leaves() {
    return this.built.leaves;
  }
  get wires() {
    return this.built.wires;
  }
  get regions() {
    return this.built.regions;
  }
  get byName() {
    return this.built.byName;
  }

  // Who makes a value, as a node beside it sees that: from within its kernel, or from outside.
  maker(name, region = null) {
    const all = this.byName.get(name) ?? [];
    return (
      all.find((maker) => maker.region === region) ?? all.find((maker) => !maker.region) ?? all[0]
    );
  }

  get text() {
    const { head, rows, tail } = this.data;
    return [head, ...rows.map((row) => this.model.rows[row][ROW.text]), tail].join("\n");
  }
}

function build(stage) {
  const { rows } = stage.model;
  const leaves = [],
    wires = [],
    regions = [];
  const made = new Map(); // value -> leaf
  const add = (leaf) => (leaves.push(Object.assign(leaf, { id: leaves.length })), leaf);
  const wire = (from, to, value) => from && to && from !== to && wires.push({ from, to, value });

  for (const [name, type, role] of stage.data.inputs) {
    made.set(
      name,
      add(
        leafOf({
          name,
          op: role,
          kind: "input",
          names: [name],
          types: [type],
          loc: "",
          text: `%${name}: ${type}`,
          reads: [],
        }),
      ),
    );
  }
  stage.data.rows.forEach((number, position) => {
    const row = rows[number];
    if (row[ROW.body]) {
      const region = regionOf(row, position);
      regions.push(region);
      fill(region, row, add, made, wire, rows);
      return;
    }
    const leaf = add(rowLeaf(row, position));
    for (const value of row[ROW.reads]) wire(made.get(value), leaf, value);
    for (const value of row[ROW.names]) made.set(value, leaf);
  });
  return { leaves, wires, regions, byName: namesOf(leaves, regions) };
}

// A region (it has `leaves`): what it is given goes to its inner nodes, what they return is what it made.
function fill(region, row, add, made, wire, rows) {
  const body = row[ROW.body];
  const inner = new Map(body.inputs.map((name, at) => [name, made.get(body.given[at])]));
  for (const number of body.rows) {
    const leaf = add(rowLeaf(rows[number], region.position));
    leaf.region = region;
    region.leaves.push(leaf);
    for (const value of rows[number][ROW.reads]) wire(inner.get(value), leaf, value);
    for (const value of rows[number][ROW.names]) inner.set(value, leaf);
  }
  const given = new Set(body.given);
  for (const value of row[ROW.reads]) {
    if (!given.has(value)) wire(made.get(value), region.leaves[0], value); // where it writes
  }
  row[ROW.names].forEach((name, at) =>
    made.set(name, inner.get(body.outputs[at]) ?? region.leaves[0]),
  );
}

function regionOf(row, position) {
  return {
    name: row[ROW.names][0] ?? "",
    names: row[ROW.names],
    types: row[ROW.types],
    op: row[ROW.op],
    kind: row[ROW.kind],
    loc: row[ROW.loc],
    phase: row[ROW.phase],
    text: row[ROW.text],
    reads: row[ROW.reads],
    position,
    region: null,
    leaves: [],
  };
}

function rowLeaf(row, position) {
  return leafOf({
    name: row[ROW.names][0] ?? "",
    op: row[ROW.op],
    kind: row[ROW.kind],
    names: row[ROW.names],
    types: row[ROW.types],
    loc: row[ROW.loc],
    phase: row[ROW.phase],
    text: row[ROW.text],
    reads: row[ROW.reads],
    position,
  });
}

function leafOf(given) {
  return { short: shortOp(given.op), region: null, position: -1, ...given };
}

// aten._softmax.default -> softmax
function shortOp(op) {
  const parts = op.split(".");
  const name = parts.length > 1 ? parts[1] : parts[0];
  return name.replace(/^_+/, "") || op;
}

// Value -> all leaves, then regions, that make it: a view may stand in a kernel and outside.
function namesOf(leaves, regions) {
  const found = new Map();
  const add = (name, maker) =>
    found.has(name) ? found.get(name).push(maker) : found.set(name, [maker]);
  for (const leaf of leaves) for (const name of leaf.names) add(name, leaf);
  for (const region of regions) for (const name of region.names) add(name, region);
  return found;
}

function grouped(items, keyOf) {
  const found = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (found.has(key)) found.get(key).push(item);
    else found.set(key, [item]);
  }
  return found;
}
