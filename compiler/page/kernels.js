// The calls of the schedule: the roofline, and a table that sorts.

const COLUMNS = [
  ["#", "number", (k) => k.index, (k) => k.index + 1],
  [
    "Call",
    "",
    (k) => kernelName(k),
    (k) => [el("span", { class: `dot ${k.kind}` }), el("span", { class: "mono" }, kernelName(k))],
  ],
  ["Operators", "ops", (k) => k.ops.length, (k) => opsText(k)],
  [
    "Bytes",
    "number",
    (k) => k.read_bytes + k.written_bytes,
    (k) => bytesText(k.read_bytes + k.written_bytes),
  ],
  ["Work", "number", (k) => k.flops, (k) => (k.flops ? flopsText(k.flops) : "")],
  [
    "Predicted",
    "number",
    (k) => k.predicted_seconds,
    (k) => [
      secondsText(k.predicted_seconds),
      el("small", {}, ` ${secondsText(k.low_seconds)}–${secondsText(k.high_seconds)}`),
    ],
  ],
  [
    "Measured",
    "number",
    (k) => k.measured_seconds ?? -1,
    (k) => (k.measured_seconds === null ? "" : secondsText(k.measured_seconds)),
  ],
  [
    "Share",
    "number share",
    (k, model) => model.share(k),
    (k, model) => [
      el("span", { class: "inbar", style: { width: `${100 * model.share(k)}%` } }),
      shareText(model.share(k)),
    ],
  ],
  ["Bound", "", (k) => k.bound, (k) => k.bound],
  [
    "Source",
    "loc",
    (k) => k.locs[0] ?? "",
    (k) =>
      el(
        "span",
        { class: "mono" },
        k.locs[0] ?? "",
        k.locs.length > 1 ? ` +${k.locs.length - 1}` : "",
      ),
  ],
];

function opsText(kernel) {
  const counted = grouped(kernel.ops, shortOp);
  return [...counted].map(([op, all]) => (all.length > 1 ? `${op}×${all.length}` : op)).join(" ");
}

class KernelsTab {
  constructor(page) {
    this.page = page;
    this.down = true;
    this.columns = COLUMNS.filter(
      ([name]) =>
        name !== "Measured" || page.model.report.kernels.some((k) => k.measured_seconds !== null),
    );
    this.roofline = new Roofline(page, (kernel) => this.open(kernel.name));
    this.query = el("input", {
      type: "search",
      placeholder: "Filter calls",
      "aria-label": "Filter calls",
      oninput: debounced(() => this.fill()),
    });
    this.tally = el("output", { class: "tally" });
    const measured = this.columns.length === COLUMNS.length;
    this.by = this.columns.findIndex(
      ([name]) => name === (page.model.measured ? "Measured" : "Predicted"),
    );
    this.table = el("div", { class: measured ? "calls measured" : "calls", role: "table" });
    this.element = el(
      "div",
      { class: "kernelstab" },
      this.roofline.element,
      el("div", { class: "toolbar" }, el("div", { class: "search" }, this.query, this.tally)),
      el("div", { class: "scroll" }, this.table),
    );
    this.fill();
  }

  fill() {
    const { model } = this.page,
      words = this.query.value.trim().toLowerCase();
    const key = this.columns[this.by][2];
    const found = model.report.kernels.filter((kernel) => !words || saidOf(kernel).includes(words));
    found.sort((a, b) => compared(key(a, model), key(b, model)) * (this.down ? -1 : 1));
    this.tally.textContent = words
      ? `${found.length} of ${model.report.kernels.length}`
      : plural(found.length, "call");
    const head = el(
      "div",
      { class: "row head", role: "row" },
      this.columns.map(([name, kind], at) =>
        el(
          "button",
          {
            type: "button",
            role: "columnheader",
            class: kind,
            "aria-sort": at === this.by ? (this.down ? "descending" : "ascending") : "none",
            onclick: () => this.sort(at),
          },
          name,
          at === this.by ? (this.down ? " ↓" : " ↑") : "",
        ),
      ),
    );
    const rows = el("div", { role: "rowgroup" });
    this.rowAt = grown(found, (kernel) => this.row(kernel), rows);
    this.table.replaceChildren(head, rows);
    this.found = found;
  }

  sort(at) {
    this.down = this.by === at ? !this.down : this.columns[at][1].startsWith("number");
    this.by = at;
    this.fill();
  }

  row(kernel) {
    const row = el(
      "div",
      {
        class: "row",
        role: "row",
        data: { row: "", kernel: kernel.name },
        onclick: () => this.toggle(kernel, row),
      },
      this.columns.map(([, kind, , cell]) =>
        el("span", { role: "cell", class: kind }, cell(kernel, this.page.model)),
      ),
    );
    return row;
  }

  toggle(kernel, row, open = !row.classList.contains("open")) {
    this.table.querySelectorAll(".row.open").forEach((each) => each.classList.remove("open"));
    this.table.querySelectorAll(".kerneldetail").forEach((each) => each.remove());
    this.opened = open ? kernel.name : null;
    this.roofline.pick(this.opened);
    if (!open) return;
    row.classList.add("open");
    row.after(this.detail(kernel));
  }

  detail(kernel) {
    const { page } = this,
      { model } = page,
      last = model.stages.length - 1;
    const said = model.decisions(unique([kernel.name, ...kernel.nodes]));
    return el(
      "div",
      { class: "kerneldetail" },
      el(
        "p",
        {},
        link("Show in the graph", () => page.openNode(kernel.name, last)),
        kernel.function
          ? [" · ", link("Show its source", () => page.openSource(kernel.function))]
          : null,
      ),
      kernel.who ? el("p", {}, kernel.who) : null,
      el(
        "p",
        {},
        `At the least ${secondsText(kernel.floor_seconds)} by the target's figures. ${bytesText(kernel.read_bytes)} read, ${bytesText(kernel.written_bytes)} written.`,
      ),
      el(
        "ul",
        { class: "locs" },
        kernel.locs.map((loc) =>
          el("li", {}, el("span", { class: "mono" }, loc), " ", el("code", {}, model.code(loc))),
        ),
      ),
      el(
        "ul",
        { class: "chips" },
        kernel.nodes.map((name) =>
          el(
            "li",
            {},
            link(`%${name}`, () => page.openNode(name, last), { class: "mono" }),
          ),
        ),
      ),
      said.length
        ? el(
            "ul",
            { class: "said" },
            said.map((d) =>
              el(
                "li",
                { class: d.kind },
                el("b", {}, d.pass),
                el("span", { class: "mono" }, ` %${d.subject}`),
                ` ${d.sentence}`,
              ),
            ),
          )
        : null,
    );
  }

  // A call by its name, scrolled to.
  open(name) {
    this.query.value = "";
    this.fill();
    const at = this.found.findIndex((kernel) => kernel.name === name);
    if (at < 0) return;
    const row = this.rowAt(at);
    this.toggle(this.found[at], row, true);
    row.scrollIntoView({ block: "center" });
  }
}

function saidOf(kernel) {
  return (kernel.said ??= [
    kernel.name,
    kernel.function,
    kernel.op,
    ...kernel.ops,
    ...kernel.nodes,
    ...kernel.locs,
    kernel.bound,
    kernel.kind,
  ]
    .join(" ")
    .toLowerCase());
}

function compared(a, b) {
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}
