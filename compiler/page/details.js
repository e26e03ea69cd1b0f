// What is known of a chosen node, kernel or block, beside the graph.

function detailsOf(app, pane, chosen) {
  if (!chosen) return el("div", { class: "details empty" }, helpText());
  const { page, model } = app;
  if (chosen.type === "block") return blockDetails(pane, chosen);
  const final = pane.index === model.stages.length - 1;
  const kernel = kernelFor(model, chosen, final);
  const title = chosen.leaves
    ? "Kernel"
    : chosen.kind === "input"
      ? `Input (${chosen.op})`
      : chosen.op;
  return el(
    "div",
    { class: "details" },
    el("h3", {}, title),
    el(
      "dl",
      {},
      chosen.names.map((name, at) => [
        el("dt", { class: "mono" }, `%${name}`),
        el("dd", { class: "mono" }, chosen.types[at]),
      ]),
    ),
    placeLine(model, chosen, pane, kernel, page),
    sourceLine(model, chosen.loc),
    chosen.leaves ? bodyList(app, pane, chosen) : null,
    values(
      app,
      pane,
      chosen,
      "Reads",
      chosen.reads.filter((name) => !isBuffer(pane.stage, name)),
    ),
    values(
      app,
      pane,
      chosen,
      "Writes into",
      chosen.reads.filter((name) => isBuffer(pane.stage, name)),
    ),
    values(app, pane, chosen, "Read by", readersOf(pane.stage, chosen)),
    kernel ? kernelFacts(kernel) : null,
    decisionsAbout(app, pane, chosen),
    chosen.text
      ? el(
          "details",
          { open: !chosen.leaves },
          el("summary", {}, "In the text"),
          el("pre", { class: "mono wrap" }, dedented(chosen.text)),
        )
      : null,
  );
}

function helpText() {
  return [
    el("h3", {}, "Choose a node"),
    el(
      "p",
      {},
      "A click shows what a node is, where it runs and what was decided about it. A click on a folded block opens it, one on its head folds it again; + opens a kernel.",
    ),
    el(
      "p",
      {},
      "Drag to move, wheel to zoom, ",
      el("kbd", {}, "/"),
      " to search, arrow keys to follow values, ",
      el("kbd", {}, "0"),
      " to see all.",
    ),
  ];
}

function blockDetails(pane, block) {
  const ops = grouped(
    leavesUnder(block).filter((leaf) => leaf.kind !== "storage" && leaf.kind !== "input"),
    (leaf) => leaf.short,
  );
  const counted = [...ops].map(([op, leaves]) => [op, leaves.length]).sort((a, b) => b[1] - a[1]);
  return el(
    "div",
    { class: "details" },
    el("h3", {}, block.label),
    el(
      "p",
      {},
      `Block ${block.number + 1} of ${block.count} that are alike, with ${plural(block.leaves, "node")}.`,
    ),
    button(block.open ? "Fold" : "Unfold", () => {
      pane.toggle(block);
      pane.app.chose(pane, block);
    }),
    el(
      "table",
      { class: "plain" },
      counted.map(([op, count]) =>
        el("tr", {}, el("td", { class: "mono" }, op), el("td", { class: "number" }, count)),
      ),
    ),
  );
}

function leavesUnder(item) {
  return item.type === "leaf" ? [item.maker] : item.children.flatMap(leavesUnder);
}

// The call that runs it, in whatever stage it is looked at.
function kernelFor(model, chosen, final) {
  if (final || chosen.leaves) return model.kernelOf.get((chosen.region ?? chosen).name);
  const node = model.nodeOf.get(chosen.name);
  return node ? model.kernelOf.get(node.kernel) : undefined;
}

const PLACES = {
  ours: "runs in a kernel of ours",
  aten: "runs as a call of PyTorch",
  view: "is a view: no data moves",
  constant: "was computed at compile time",
  gone: "is gone: nothing reads it after the rewrites",
  input: "is given by the caller",
  storage: "says where memory begins or ends",
};

function placeLine(model, chosen, pane, kernel, page) {
  const fate = model.links.fate(chosen, pane.index);
  return el(
    "p",
    { class: "place" },
    el("span", { class: `dot ${fate}` }),
    chosen.leaves ? "is a kernel of ours" : PLACES[fate],
    kernel
      ? [
          ": ",
          link(kernel.function || kernel.name, () => page.openKernel(kernel.name), {
            class: "mono",
          }),
        ]
      : null,
  );
}

function sourceLine(model, loc) {
  if (!loc) return null;
  const code = model.code(loc);
  return el(
    "p",
    { class: "loc" },
    el("span", { class: "mono" }, loc),
    code ? el("code", {}, code) : null,
  );
}

function bodyList(app, pane, region) {
  return el(
    "details",
    { open: region.leaves.length <= 12 },
    el("summary", {}, plural(region.leaves.length, "node")),
    el(
      "ul",
      { class: "chips" },
      region.leaves.map((leaf) =>
        el(
          "li",
          {},
          link(leaf.short, () => app.chose(pane, leaf, true), { title: leaf.text.trim() }),
        ),
      ),
    ),
  );
}

function values(app, pane, chosen, title, names) {
  if (!names.length) return null;
  const chips = names.slice(0, 60).map((name) => {
    const maker = pane.stage.maker(name, chosen.region);
    return el(
      "li",
      {},
      maker
        ? link(`%${name}`, () => app.chose(pane, maker, true), {
            class: "mono",
            title: maker.types?.[0],
          })
        : el("span", { class: "mono" }, `%${name}`),
    );
  });
  const more = names.length > 60 ? el("li", {}, `and ${names.length - 60} more`) : null;
  return [el("h4", {}, title), el("ul", { class: "chips" }, chips, more)];
}

function isBuffer(stage, name) {
  return stage.maker(name)?.op === "rw.alloc";
}

function readersOf(stage, chosen) {
  const found = stage.wires.filter((wire) => partOf(wire.from, chosen) && !partOf(wire.to, chosen));
  const names = found.map(
    (wire) => (wire.to.region && wire.to.region !== chosen.region ? wire.to.region : wire.to).name,
  );
  return unique(names.filter(Boolean));
}

function kernelFacts(kernel) {
  const bytes = kernel.read_bytes + kernel.written_bytes;
  const fact = (name, value) => [el("dt", {}, name), el("dd", {}, value)];
  return [
    el("h4", {}, "The call"),
    el(
      "dl",
      { class: "facts" },
      fact(
        "predicted",
        `${secondsText(kernel.predicted_seconds)} (${secondsText(kernel.low_seconds)} to ${secondsText(kernel.high_seconds)})`,
      ),
      kernel.measured_seconds === null
        ? null
        : fact("measured", secondsText(kernel.measured_seconds)),
      fact(
        "bytes",
        `${bytesText(kernel.read_bytes)} read, ${bytesText(kernel.written_bytes)} written`,
      ),
      fact(
        "work",
        flopsText(kernel.flops) +
          (bytes && kernel.flops ? `, ${(kernel.flops / bytes).toPrecision(2)} a byte` : ""),
      ),
      fact("bound by", kernel.bound),
    ),
  ];
}

function decisionsAbout(app, pane, chosen) {
  const names = unique([...chosen.names, ...(chosen.leaves ?? []).flatMap((leaf) => leaf.names)]);
  const found = app.model.decisions(names);
  if (!found.length) return null;
  return [
    el("h4", {}, `Decisions (${found.length})`),
    el(
      "ul",
      { class: "said" },
      found
        .slice(0, 40)
        .map((decision) =>
          el(
            "li",
            { class: decision.kind },
            el("b", {}, decision.pass),
            chosen.leaves ? el("span", { class: "mono" }, ` %${decision.subject}`) : null,
            ` ${decision.sentence}`,
          ),
        ),
    ),
    found.length > 40
      ? link("all of them", () => app.page.openDecisions({ query: chosen.name }))
      : null,
  ];
}

// Without the indent that all lines share.
function dedented(text) {
  const lines = text.split("\n");
  const indent = Math.min(...lines.filter((line) => line.trim()).map((line) => line.search(/\S/)));
  return lines.map((line) => line.slice(indent)).join("\n");
}
