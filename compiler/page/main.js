// The page: its head, its parts, and how they lead to each other.

const TABS = [
  ["overview", "Overview", overviewTab],
  ["graph", "Graph", (page) => new GraphTab(page)],
  ["memory", "Memory", memoryTab],
  ["kernels", "Kernels", (page) => new KernelsTab(page)],
  ["decisions", "Decisions", (page) => new DecisionsTab(page)],
  ["sources", "Sources", (page) => new SourcesTab(page)],
];

class Page {
  constructor(model) {
    this.model = model;
    this.made = new Map();
    this.main = document.getElementById("main");
    this.buttons = new Map(
      TABS.map(([name, label]) => [
        name,
        button([label, this.count(name)], () => this.show(name), {
          role: "tab",
          "aria-selected": "false",
          data: { tab: name },
        }),
      ]),
    );
    document.getElementById("tabs").append(...this.buttons.values());
    document.getElementById("heading").append(...heading(model.report));
    document.getElementById("loading").remove();
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("hashchange", () => this.show(this.asked()));
    this.show(this.asked());
  }

  count(name) {
    const { report } = this.model;
    const counts = { kernels: report.kernels.length, decisions: report.decisions.length };
    return name in counts ? el("small", {}, countText(counts[name])) : null;
  }

  asked() {
    const name = location.hash.slice(1);
    return this.buttons.has(name) ? name : "overview";
  }

  tab(name) {
    if (!this.made.has(name)) {
      const made = TABS.find(([key]) => key === name)[2](this);
      made.holder_ = el("section", { class: "tab", role: "tabpanel", id: name }, made.element);
      this.main.append(made.holder_);
      this.made.set(name, made);
    }
    return this.made.get(name);
  }

  show(name) {
    const shown = this.tab(name);
    for (const made of this.made.values()) made.holder_.hidden = made !== shown;
    for (const [key, each] of this.buttons) each.setAttribute("aria-selected", key === name);
    if (this.asked() !== name) history.replaceState(null, "", `#${name}`);
    return shown;
  }

  openNode(name, stage) {
    this.show("graph").open(name, stage);
  }
  openKernel(name) {
    this.show("kernels").open(name);
  }
  openDecisions(wanted) {
    this.show("decisions").open(wanted);
  }
  openSource(name) {
    this.show("sources").open(name);
  }

  // A value by its name in the last stage that has it.
  openValue(name) {
    const stage = this.model.stages.findLast((each) => each.graph.byName.has(name));
    this.openNode(name, stage ? stage.index : this.model.stages.length - 1);
  }

  key(event) {
    if (
      event.key !== "/" ||
      event.ctrlKey ||
      event.metaKey ||
      event.target.closest?.("input, select, textarea")
    )
      return;
    event.preventDefault();
    const { query } = this.show(
      ["kernels", "decisions"].includes(this.asked()) ? this.asked() : "graph",
    );
    query.focus();
    query.select();
  }
}

function heading(report) {
  const chosen = Object.entries(report.options)
    .filter(([name]) => name !== "target")
    .map(([name, value]) => `${name.replaceAll("_", "-")} ${value}`);
  const said = [
    `for ${report.target}`,
    ...chosen,
    `rewright ${report.rewright}`,
    `torch ${report.torch}`,
  ];
  if (report.measured_seconds !== null)
    said.push(`a run took ${secondsText(report.measured_seconds)}`);
  return [el("h1", {}, report.graph), el("p", {}, said.join(" · "))];
}

// --- light and dark ------------------------------------------------------------------------------

const THEMES = [
  ["", "◐", "as the system has it"],
  ["light", "☀", "light"],
  ["dark", "☾", "dark"],
];

function themed(page) {
  const act = document.getElementById("theme");
  const repaint = () => {
    inks = null;
    for (const pane of page.made.get("graph")?.panes ?? []) pane.redraw();
  };
  const set = (at) => {
    const [theme, sign, title] = THEMES[at];
    document.documentElement.dataset.theme = theme;
    act.textContent = sign;
    act.title = `Colours: ${title}`;
    act.onclick = () => set((at + 1) % THEMES.length);
    repaint();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  set(0);
}

async function start() {
  const data = await unpacked(document.getElementById("data").textContent.trim());
  const page = new Page(new Model(data));
  themed(page);
  globalThis.report = page; // for the curious: report.model.report is the report's JSON
  requestAnimationFrame(() => {
    document.documentElement.dataset.ready = Math.round(performance.now());
  });
}

start().catch((error) => {
  document
    .getElementById("main")
    .replaceChildren(el("p", { id: "loading" }, `The report cannot be shown: ${error.message}`));
  throw error;
});
