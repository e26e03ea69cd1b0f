// Memory over the calls of a run, before and after, and what is alive at each.

function memoryTab(page) {
  const { model } = page,
    { report, data } = model;
  const live = el("div", { class: "live" });
  const series = [
    {
      key: "before",
      title: "As the model came",
      bytes: report.memory.before,
      buffers: data.before,
      calls: data.beforeCalls,
      stage: 0,
    },
    {
      key: "after",
      title: "As it runs",
      bytes: report.memory.after,
      buffers: report.buffers,
      calls: report.kernels.map((kernel) => kernel.name),
      stage: model.stages.length - 1,
    },
  ].filter((one) => one.bytes.length);
  const most = Math.max(
    1,
    report.memory.budget_bytes ?? 0,
    ...series.map((one) => highest(one.bytes)),
  );
  const charts = series.map(
    (one) =>
      new MemoryChart(one, most, report.memory.budget_bytes, (chart, call) => {
        charts.forEach((each) => each.mark(each === chart ? call : null));
        live.replaceChildren(liveList(page, one, call));
      }),
  );
  const arena = report.buffers.some((buffer) => buffer.placed) ? new ArenaMap(page, report) : null;
  charts.at(-1)?.choose(charts.at(-1).peak);
  return {
    element: el(
      "div",
      { class: "memorytab" },
      el(
        "div",
        { class: "charts" },
        charts.map((chart) => chart.element),
        arena?.element,
        el(
          "p",
          { class: "sub" },
          "Bytes beyond the inputs at each call of the schedule. Point at a time to see what is alive then; a click keeps it.",
        ),
      ),
      live,
    ),
  };
}

function highest(numbers) {
  return numbers.reduce((most, value) => Math.max(most, value), 0);
}

class MemoryChart {
  constructor(series, most, budget, chosen) {
    Object.assign(this, { series, most, budget, chosen, kept: null });
    this.peak = series.bytes.indexOf(highest(series.bytes));
    this.plot = el("div", { class: "plot" });
    this.element = el(
      "figure",
      { class: "chart", data: { series: series.key } },
      el(
        "figcaption",
        {},
        el("b", {}, series.title),
        ` peak ${bytesText(series.bytes[this.peak])} at call ${this.peak + 1} of ${series.bytes.length}`,
      ),
      this.plot,
    );
    sized(this.plot, (width) => this.draw(width));
  }

  draw(width) {
    if (!width || width === this.width) return;
    Object.assign(this, { width, left: 64, height: 190, top: 8, foot: 22 });
    const { bytes } = this.series,
      right = width - 12;
    this.x = (call) => this.left + ((right - this.left) * call) / bytes.length;
    this.y = (value) =>
      this.top + (this.height - this.top - this.foot) * (1 - value / (1.06 * this.most));
    const base = this.y(0);
    let line = `M${this.x(0)} ${base}`;
    bytes.forEach((value, call) => {
      line += `V${this.y(value).toFixed(1)}H${this.x(call + 1).toFixed(1)}`;
    });
    this.cursor = svg("g", { class: "cursor" });
    const root = svg(
      "svg",
      {
        width,
        height: this.height,
        role: "img",
        "aria-label": this.series.title,
        onpointermove: (event) => this.kept === null && this.choose(this.callAt(event)),
        onclick: (event) => {
          const call = this.callAt(event);
          this.kept = this.kept === call ? null : call;
          this.choose(call);
        },
      },
      ticks(0, 1.06 * this.most, 4, 2).map((value) => [
        svg("line", {
          class: "grid",
          x1: this.left,
          x2: right,
          y1: this.y(value),
          y2: this.y(value),
        }),
        svg(
          "text",
          { class: "tick", x: this.left - 8, y: this.y(value) + 4, "text-anchor": "end" },
          bytesText(value),
        ),
      ]),
      ticks(0, bytes.length, 6).map((call) =>
        svg(
          "text",
          { class: "tick", x: this.x(call), y: this.height - 6, "text-anchor": "middle" },
          Math.round(call),
        ),
      ),
      svg("path", { class: `area ${this.series.key}`, d: `${line}V${base}Z` }),
      svg("path", { class: `edge ${this.series.key}`, d: line }),
      this.budget === null
        ? []
        : [
            svg("line", {
              class: "budgetline",
              x1: this.left,
              x2: right,
              y1: this.y(this.budget),
              y2: this.y(this.budget),
            }),
            svg(
              "text",
              { class: "budgettext", x: right, y: this.y(this.budget) - 5, "text-anchor": "end" },
              `budget ${bytesText(this.budget)}`,
            ),
          ],
      svg("circle", {
        class: "peak",
        cx: this.x(this.peak + 0.5),
        cy: this.y(bytes[this.peak]),
        r: 4,
      }),
      this.cursor,
    );
    this.plot.replaceChildren(root);
    if (this.at !== undefined) this.mark(this.at);
  }

  callAt(event) {
    const share = (event.offsetX - this.left) / (this.width - 12 - this.left);
    return Math.min(
      this.series.bytes.length - 1,
      Math.max(0, Math.floor(share * this.series.bytes.length)),
    );
  }

  choose(call) {
    this.chosen(this, call);
  }

  mark(call) {
    this.at = call;
    if (!this.cursor) return;
    this.cursor.replaceChildren();
    if (call === null) return;
    const x = this.x(call + 0.5);
    this.cursor.append(
      svg("line", { x1: x, x2: x, y1: this.top, y2: this.height - this.foot }),
      svg("circle", { cx: x, cy: this.y(this.series.bytes[call]), r: 3.5 }),
    );
  }
}

function liveList(page, series, call) {
  const alive = series.buffers
    .filter((buffer) => buffer.first <= call && call <= buffer.last)
    .sort((a, b) => b.nbytes - a.nbytes);
  const sum = alive.reduce((total, buffer) => total + buffer.nbytes, 0),
    bytes = series.bytes[call];
  const name = series.calls[call];
  const rows = el("div", { class: "liverows" });
  grown(
    alive,
    (buffer) =>
      el(
        "div",
        { class: "liverow" },
        el(
          "span",
          { class: "barcell" },
          el("span", {
            class: "fill",
            style: { width: `${(100 * buffer.nbytes) / (alive[0].nbytes || 1)}%` },
          }),
        ),
        el("span", { class: "number" }, bytesText(buffer.nbytes)),
        link(`%${buffer.name}`, () => page.openNode(buffer.name, series.stage), { class: "mono" }),
        el("span", { class: "sub" }, `calls ${buffer.first + 1}–${buffer.last + 1}`),
      ),
    rows,
    80,
  );
  return el(
    "div",
    {},
    el("h2", {}, `${bytesText(bytes)} at call ${call + 1}`),
    el(
      "p",
      {},
      series.title,
      ": ",
      name ? link(`%${name}`, () => page.openNode(name, series.stage), { class: "mono" }) : "",
      `, ${plural(alive.length, "value")} alive` +
        (sum < bytes
          ? ` with ${bytesText(sum)}; the rest is room in the arena, or held beside this graph`
          : ""),
    ),
    rows,
  );
}

// --- the arena -----------------------------------------------------------------------------------

// Calls to the right, addresses upwards, a value a rectangle.
class ArenaMap {
  constructor(page, report) {
    this.buffers = report.buffers.filter((buffer) => buffer.placed);
    this.calls = report.kernels.length;
    this.bytes = Math.max(1, report.memory.arena_bytes);
    this.plot = el("div", { class: "plot" });
    this.said = el(
      "span",
      {},
      `${plural(this.buffers.length, "value")} share ${bytesText(report.memory.arena_bytes)}`,
    );
    this.element = el(
      "figure",
      { class: "chart" },
      el("figcaption", {}, el("b", {}, "The arena"), " ", this.said),
      this.plot,
    );
    this.page = page;
    this.stage = page.model.stages.length - 1;
    sized(this.plot, (width) => this.draw(width));
  }

  draw(width) {
    if (!width || width === this.width) return;
    this.width = width;
    const left = 64,
      right = width - 12,
      top = 6,
      bottom = 200;
    const x = (call) => left + ((right - left) * call) / this.calls;
    const y = (offset) => bottom - ((bottom - top) * offset) / this.bytes;
    this.plot.replaceChildren(
      svg(
        "svg",
        { width, height: 208, role: "img", "aria-label": "Places in the arena" },
        svg("rect", { class: "arena", x: left, y: top, width: right - left, height: bottom - top }),
        ticks(0, this.bytes, 4, 2).map((value) =>
          svg(
            "text",
            { class: "tick", x: left - 8, y: y(value) + 4, "text-anchor": "end" },
            bytesText(value),
          ),
        ),
        this.buffers.map((buffer, at) =>
          svg("rect", {
            class: `slot slot${at % 6}`,
            x: x(buffer.first),
            y: y(buffer.offset + buffer.nbytes),
            width: Math.max(1, x(buffer.last + 1) - x(buffer.first)),
            height: Math.max(1, y(buffer.offset) - y(buffer.offset + buffer.nbytes)),
            onclick: () => this.page.openNode(buffer.name, this.stage),
            onpointerenter: () => {
              this.said.textContent = `%${buffer.name}: ${bytesText(buffer.nbytes)} at ${countText(buffer.offset)}, calls ${buffer.first + 1}–${buffer.last + 1}`;
            },
          }),
        ),
      ),
    );
  }
}
