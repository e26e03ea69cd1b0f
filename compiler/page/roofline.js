// Calls under the roofs of the machine: work a byte to the right, work a second upwards.

class Roofline {
  constructor(page, chosen) {
    this.page = page;
    this.chosen = chosen;
    const { report, data } = page.model;
    this.kernels = report.kernels.filter(
      (kernel) =>
        kernel.flops > 0 &&
        kernel.predicted_seconds > 0 &&
        kernel.read_bytes + kernel.written_bytes > 0,
    );
    this.idle = report.kernels.length - this.kernels.length;
    this.roofs = data.roofs && inUse(data.roofs, report);
    this.plot = el("div", { class: "plot" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.element = el(
      "figure",
      { class: "roofline" },
      this.plot,
      this.tip,
      el("figcaption", { class: "sub" }, this.caption(data.roofs)),
    );
    sized(this.plot, (width) => this.draw(width));
  }

  caption(roofs) {
    const measured = this.kernels.some((kernel) => kernel.measured_seconds !== null);
    return [
      "A dot is a call; its size is its share of the time. ",
      measured ? "Full dots are measured, rings predicted. " : "Times are predicted. ",
      this.idle
        ? `${plural(this.idle, "call")} that ${this.idle === 1 ? "does" : "do"} no arithmetic ${this.idle === 1 ? "is" : "are"} not drawn. `
        : "",
      roofs
        ? `Roofs: ${roofs.source}.`
        : "The figures of the target are not known here, so there are no roofs.",
    ];
  }

  draw(width) {
    if (!width || width === this.width || !this.kernels.length) return;
    this.width = width;
    this.height = Math.min(420, Math.max(280, width * 0.42));
    this.frame = { left: 92, right: width - 16, top: 12, bottom: this.height - 36 };
    const { left, right, top, bottom } = this.frame;
    const [lowX, highX, lowY, highY] = this.bounds();
    this.x = (v) => left + ((right - left) * Math.log(v / lowX)) / Math.log(highX / lowX);
    this.y = (v) => bottom - ((bottom - top) * Math.log(v / lowY)) / Math.log(highY / lowY);
    const decades = (low, high) =>
      Array.from(
        { length: Math.max(0, Math.floor(Math.log10(high)) - Math.ceil(Math.log10(low)) + 1) },
        (_, i) => 10 ** (Math.ceil(Math.log10(low)) + i),
      );
    this.plot.replaceChildren(
      svg(
        "svg",
        { width, height: this.height, role: "img", "aria-label": "Roofline plot" },
        decades(lowX, highX).map((v) => [
          svg("line", { class: "grid", x1: this.x(v), x2: this.x(v), y1: top, y2: bottom }),
          svg(
            "text",
            { class: "tick", x: this.x(v), y: bottom + 16, "text-anchor": "middle" },
            shortNumber(v),
          ),
        ]),
        decades(lowY, highY).map((v) => [
          svg("line", { class: "grid", x1: left, x2: right, y1: this.y(v), y2: this.y(v) }),
          svg(
            "text",
            { class: "tick", x: left - 8, y: this.y(v) + 4, "text-anchor": "end" },
            `${flopsText(v)}/s`.replace(".00", ""),
          ),
        ]),
        svg(
          "text",
          { class: "axis", x: (left + right) / 2, y: this.height - 4, "text-anchor": "middle" },
          "FLOP a byte",
        ),
        this.roofLines(lowX, highX, lowY),
        this.dots(),
      ),
    );
    this.pick(this.picked);
  }

  bounds() {
    const points = this.kernels.flatMap((kernel) =>
      [kernel.predicted_seconds, kernel.measured_seconds]
        .filter((s) => s > 0)
        .map((s) => [intensity(kernel), kernel.flops / s]),
    );
    const xs = points.map((p) => p[0]),
      ys = points.map((p) => p[1]);
    const peak = this.roofs ? Math.max(...this.roofs.flops.map(([, rate]) => rate)) : 0;
    if (this.roofs) xs.push(peak / this.roofs.bytes.at(-1)[1]);
    const low = xs.reduce((a, b) => Math.min(a, b)),
      high = xs.reduce((a, b) => Math.max(a, b));
    return [
      low / 2,
      high * 4,
      ys.reduce((a, b) => Math.min(a, b)) / 2,
      Math.max(
        peak,
        ys.reduce((a, b) => Math.max(a, b)),
      ) * 2,
    ];
  }

  roofLines(lowX, highX, lowY) {
    if (!this.roofs) return [];
    const peak = Math.max(...this.roofs.flops.map(([, rate]) => rate));
    const slope = this.roofs.bytes.map(([name, rate]) => {
      const from = Math.max(lowX, lowY / rate),
        to = Math.min(highX, peak / rate);
      if (from >= to) return [];
      const angle =
        (Math.atan2(this.y(rate * to) - this.y(rate * from), this.x(to) - this.x(from)) * 180) /
        Math.PI;
      const at = from * (to / from) ** 0.12;
      return [
        svg("line", {
          class: "roof",
          x1: this.x(from),
          y1: this.y(rate * from),
          x2: this.x(to),
          y2: this.y(rate * to),
        }),
        svg(
          "text",
          {
            class: "rooftext",
            transform: `translate(${this.x(at)} ${this.y(rate * at) - 5}) rotate(${angle})`,
          },
          `${name} ${bytesText(rate)}/s`,
        ),
      ];
    });
    const fastest = Math.max(...this.roofs.bytes.map(([, rate]) => rate));
    const flat = this.roofs.flops.map(([dtype, rate]) => {
      const from = Math.max(lowX, rate / fastest);
      return [
        svg("line", {
          class: "roof",
          x1: this.x(from),
          x2: this.x(highX),
          y1: this.y(rate),
          y2: this.y(rate),
        }),
        svg(
          "text",
          { class: "rooftext", x: this.x(highX) - 4, y: this.y(rate) - 5, "text-anchor": "end" },
          `${dtype} ${flopsText(rate)}/s`,
        ),
      ];
    });
    return [...slope, ...flat];
  }

  // Large dots first, so that small ones can be reached.
  dots() {
    const { model } = this.page;
    this.dotOf = new Map();
    const order = [...this.kernels].sort((a, b) => model.share(b) - model.share(a));
    return order.map((kernel) => {
      const x = this.x(intensity(kernel)),
        r = 3 + 15 * Math.sqrt(model.share(kernel));
      const at = (seconds, kind, radius) =>
        svg("circle", {
          class: `dotmark ${kernel.kind} ${kind}`,
          cx: x,
          cy: this.y(kernel.flops / seconds),
          r: radius,
        });
      const known = kernel.measured_seconds > 0;
      const drawn = svg(
        "g",
        {
          class: "point",
          data: { kernel: kernel.name },
          onpointerenter: () => this.hover(kernel, x),
          onpointerleave: () => {
            this.tip.hidden = true;
          },
          onclick: () => this.chosen(kernel),
        },
        known
          ? svg("line", {
              class: "apart",
              x1: x,
              x2: x,
              y1: this.y(kernel.flops / kernel.predicted_seconds),
              y2: this.y(kernel.flops / kernel.measured_seconds),
            })
          : [],
        at(kernel.predicted_seconds, known ? "ring" : "", r),
        known ? at(kernel.measured_seconds, "", r) : [],
      );
      this.dotOf.set(kernel.name, drawn);
      return drawn;
    });
  }

  hover(kernel, x) {
    const { model } = this.page;
    this.tip.replaceChildren(
      el("b", { class: "mono" }, kernelName(kernel)),
      el("br"),
      `${secondsText(kernel.predicted_seconds)} predicted` +
        (kernel.measured_seconds === null
          ? ""
          : `, ${secondsText(kernel.measured_seconds)} measured`),
      el("br"),
      `${intensity(kernel).toPrecision(3)} FLOP a byte, ${shareText(model.share(kernel))} of the time, ${kernel.bound} bound`,
    );
    this.tip.hidden = false;
    this.tip.style.setProperty("left", `${Math.min(x + 12, this.width - 280)}px`);
    this.tip.style.setProperty(
      "top",
      `${Math.max(0, this.y(kernel.flops / kernel.predicted_seconds) - 70)}px`,
    );
  }

  pick(name) {
    this.picked = name;
    for (const [key, dot] of this.dotOf ?? []) dot.classList.toggle("picked", key === name);
  }
}

function intensity(kernel) {
  return kernel.flops / (kernel.read_bytes + kernel.written_bytes);
}

// Only the element types that the model computes in.
function inUse(roofs, report) {
  const seen = new Set(
    report.nodes.flatMap((node) => node.type.match(/\b[a-z]+[0-9]+(?:e\dm\d\w*)?(?=\[)/g) ?? []),
  );
  const flops = roofs.flops.filter(([dtype]) => seen.has(dtype));
  return { ...roofs, flops: flops.length ? flops : roofs.flops.slice(0, 1) };
}

function shortNumber(value) {
  return value >= 0.01 && value < 10000
    ? String(Number(value.toPrecision(2)))
    : value.toExponential(0);
}
