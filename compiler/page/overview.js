// What a compile came to: what was gained, and what each pass did.

function overviewTab(page) {
  const { report } = page.model;
  return {
    element: el(
      "div",
      { class: "overview" },
      gains(report),
      facts(page.model),
      passTable(page),
      slowest(page),
    ),
  };
}

function gains(report) {
  const first = report.passes[0],
    last = report.passes.at(-1);
  return el(
    "section",
    { class: "cards" },
    card(
      "Predicted time",
      first.estimated_seconds,
      last.estimated_seconds,
      secondsText,
      "faster",
      "slower",
    ),
    card(
      "Peak memory",
      highest(report.memory.before),
      report.memory.peak_bytes,
      bytesText,
      "less",
      "more",
      budgetLine(report),
    ),
    card("Calls", first.calls, last.calls, countText, "fewer", "more"),
    card("Nodes", first.nodes, last.nodes, countText, "fewer", "more"),
  );
}

function card(title, before, after, text, less, more, foot) {
  const most = Math.max(before, after, 1e-300);
  const bar = (value, kind) =>
    el("div", { class: `bar ${kind}`, style: { width: `${(100 * value) / most}%` } });
  return el(
    "div",
    { class: "card" },
    el("h2", {}, title),
    el(
      "div",
      { class: "figures" },
      el("span", { class: "before" }, text(before)),
      el("span", { class: "arrow" }, "→"),
      el("strong", {}, text(after)),
    ),
    el("div", { class: "bars", "aria-hidden": "true" }, bar(before, "was"), bar(after, "is")),
    el("p", { class: toned(before, after) }, changeText(before, after, less, more)),
    foot,
  );
}

function toned(before, after) {
  if (changeText(before, after) === "as before") return "sub";
  return after < before ? "better" : "worse";
}

function budgetLine({ memory }) {
  if (memory.budget_bytes === null) return null;
  const kept = memory.peak_bytes <= memory.budget_bytes;
  return el(
    "p",
    { class: `budget ${kept ? "kept" : "broken"}` },
    kept
      ? `Budget of ${bytesText(memory.budget_bytes)} kept: the peak is ${bytesText(memory.peak_bytes)}`
      : `Over the budget of ${bytesText(memory.budget_bytes)}: the peak is ${bytesText(memory.peak_bytes)}`,
  );
}

function facts(model) {
  const { report } = model;
  const counts = grouped(report.nodes, (node) => node.runs);
  const order = ["ours", "aten", "view", "constant", "gone"].filter((runs) => counts.has(runs));
  const total = report.nodes.length || 1;
  return el(
    "section",
    { class: "ran" },
    el("h2", {}, "Where the nodes of the model run"),
    el(
      "div",
      { class: "stack" },
      order.map((runs) => {
        const count = counts.get(runs).length;
        return el("div", {
          class: `part ${runs}`,
          title: `${count} ${PLACES[runs]}`,
          style: { "flex-grow": count / total },
        });
      }),
    ),
    el(
      "p",
      { class: "legend" },
      order.map((runs) =>
        el(
          "span",
          {},
          el("span", { class: `dot ${runs}` }),
          `${countText(counts.get(runs).length)} ${RUNS[runs]}`,
        ),
      ),
    ),
    report.recomputed.length
      ? el(
          "p",
          {},
          `${plural(report.recomputed.length, "value")} of the forward ${report.recomputed.length === 1 ? "is" : "are"} computed again instead of being kept.`,
        )
      : null,
    report.notes.map((note) => el("p", { class: "note" }, note)),
  );
}

const RUNS = {
  ours: "in kernels of ours",
  aten: "as calls of PyTorch",
  view: "as views",
  constant: "computed at compile time",
  gone: "gone",
};

// --- passes --------------------------------------------------------------------------------------

function passTable(page) {
  const { report } = page.model;
  const most = Math.max(...report.passes.map((row) => row.seconds), 1e-12);
  const total = report.passes.reduce((sum, row) => sum + row.seconds, 0) || 1;
  const strip = el(
    "div",
    { class: "strip" },
    report.passes.slice(1).map((row, at) =>
      el(
        "button",
        {
          type: "button",
          class: "piece",
          title: `${row.spec}: ${secondsText(row.seconds)}`,
          style: { "flex-grow": row.seconds / total },
          onclick: () => page.openDecisions({ pass: row.name }),
          data: { at: at + 1 },
        },
        row.seconds / total > 0.06 ? el("span", {}, row.name) : null,
      ),
    ),
  );
  const head = ["Pass", "Took", "Nodes", "Calls", "Peak", "Predicted", "Decisions", ""];
  return el(
    "section",
    { class: "passes" },
    el("h2", {}, "Passes"),
    el(
      "p",
      { class: "sub" },
      `${secondsText(report.pass_seconds)} in all` +
        (report.build_seconds
          ? `, and ${secondsText(report.build_seconds)} to build kernels`
          : "") +
        ". A click on a pass shows what it decided.",
    ),
    strip,
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "rows", id: "passes" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            head.map((name, at) => el("th", { class: at && at < 7 ? "number" : "" }, name)),
          ),
        ),
        el(
          "tbody",
          {},
          report.passes.map((row, at) => passRow(page, row, report.passes[at - 1], at, most)),
        ),
      ),
    ),
  );
}

function passRow(page, row, before, at, most) {
  const said = row.decided + row.refused;
  return el(
    "tr",
    {
      class: said ? "clickable" : "",
      data: { pass: row.name },
      onclick: () => said && page.openDecisions({ pass: row.name }),
    },
    el("td", { class: "mono" }, row.spec),
    el(
      "td",
      { class: "number took" },
      el("span", { class: "inbar", style: { width: `${(100 * row.seconds) / most}%` } }),
      at ? secondsText(row.seconds) : "",
    ),
    changed(row.nodes, before?.nodes, countText),
    changed(row.calls, before?.calls, countText),
    changed(row.peak_bytes, before?.peak_bytes, bytesText),
    changed(row.estimated_seconds, before?.estimated_seconds, secondsText),
    el(
      "td",
      { class: "number" },
      said
        ? [
            row.decided ? countText(row.decided) : "",
            row.refused
              ? el("span", { class: "refusedcount" }, ` ${countText(row.refused)} refused`)
              : "",
          ]
        : "",
    ),
    el(
      "td",
      {},
      link("graph", (event) => {
        event.stopPropagation();
        page.openNode(null, at);
      }),
    ),
  );
}

// A number, marked where the pass changed it.
function changed(value, before, text) {
  const shown = text(value);
  if (before === undefined || text(before) === shown)
    return el("td", { class: before === undefined ? "number" : "number same" }, shown);
  return el(
    "td",
    { class: `number ${value < before ? "better" : "worse"}`, title: `${text(before)} before` },
    `${value < before ? "↓" : "↑"} ${shown}`,
  );
}

function slowest(page) {
  const { model } = page;
  const top = [...model.report.kernels]
    .sort((a, b) => model.seconds(b) - model.seconds(a))
    .slice(0, 6);
  if (!top.length) return null;
  return el(
    "section",
    { class: "slowest" },
    el("h2", {}, "The slowest calls"),
    el(
      "ul",
      {},
      top.map((kernel) =>
        el(
          "li",
          {},
          el(
            "span",
            { class: "barcell" },
            el("span", {
              class: `fill ${kernel.kind}`,
              style: { width: `${100 * model.share(kernel)}%` },
            }),
          ),
          el("span", { class: "number" }, shareText(model.share(kernel))),
          link(kernelName(kernel), () => page.openKernel(kernel.name), { class: "mono" }),
          el(
            "span",
            { class: "sub" },
            `${secondsText(model.seconds(kernel))}, ${kernel.bound} bound${kernel.locs.length ? `, ${kernel.locs[0]}` : ""}`,
          ),
        ),
      ),
    ),
    link("All calls", () => page.show("kernels")),
  );
}

function kernelName(kernel) {
  return kernel.function || `${shortOp(kernel.op)} %${kernel.name}`;
}
