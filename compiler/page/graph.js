// The graph part: one stage or two beside each other, search, what is chosen.

class GraphTab {
  constructor(page) {
    this.page = page;
    this.model = page.model;
    this.found = [];
    this.at = -1;
    const last = this.model.stages.length - 1;
    this.panes = [new Pane(this, 0), new Pane(this, last)];
    this.side = el("aside", {});
    this.holder = el(
      "div",
      { class: "panes" },
      this.panes.map((pane) => pane.element),
    );
    this.element = el(
      "div",
      { class: "graphtab" },
      this.toolbar(),
      el("div", { class: "graphbody" }, this.holder, this.side),
    );
    this.active = this.panes[1];
    this.setSplit(innerWidth >= 1000);
    this.chose(this.active, null);
  }

  toolbar() {
    this.query = el("input", {
      type: "search",
      placeholder: "Search names, operators, source lines",
      "aria-label": "Search the graph",
      spellcheck: "false",
      oninput: debounced(() => this.search()),
      onkeydown: (event) => this.searchKey(event),
    });
    this.tally = el("output", { class: "tally" });
    this.split = checkbox("side by side", true, (on) => this.setSplit(on));
    this.inputs = checkbox(
      "inputs",
      false,
      () => this.setOptions(),
      "Draw parameters and other inputs",
    );
    this.storage = checkbox(
      "allocations",
      false,
      () => this.setOptions(),
      "Draw where memory is taken and given back",
    );
    return el(
      "div",
      { class: "toolbar" },
      el(
        "div",
        { class: "search" },
        this.query,
        this.tally,
        button("↑", () => this.go(-1), { title: "The match before (Shift+Enter)" }),
        button("↓", () => this.go(1), { title: "The next match (Enter)" }),
      ),
      button("Fold all", () => this.each((pane) => pane.setAll(false))),
      button("Unfold all", () => this.each((pane) => pane.setAll(true))),
      button("Fit", () => this.each((pane) => pane.camera.fit(pane.tree.root))),
      this.split,
      this.inputs,
      this.storage,
      this.legend(),
    );
  }

  legend() {
    const names = {
      ours: "kernel of ours",
      aten: "PyTorch",
      view: "view",
      constant: "constant",
      gone: "gone",
    };
    return el(
      "span",
      { class: "legend" },
      Object.entries(names).map(([fate, label]) =>
        el("span", {}, el("span", { class: `dot ${fate}` }), label),
      ),
    );
  }

  each(act) {
    for (const pane of this.panes) act(pane);
  }

  setSplit(on) {
    this.split.firstChild.checked = on;
    this.panes[0].element.hidden = !on && this.active !== this.panes[0];
    this.panes[1].element.hidden = !on && this.active !== this.panes[1];
  }

  setOptions() {
    const options = {
      inputs: this.inputs.firstChild.checked,
      storage: this.storage.firstChild.checked,
    };
    this.each((pane) => pane.setOptions(options));
  }

  optionsShown() {
    this.inputs.firstChild.checked = this.panes.some((pane) => pane.options.inputs);
    this.storage.firstChild.checked = this.panes.some((pane) => pane.options.storage);
  }

  // Something was clicked (or null): show it, and the same in the other pane.
  chose(pane, chosen, move = false) {
    this.active = pane;
    if (chosen && chosen.type !== "block" && move) pane.show(chosen);
    else pane.select(chosen);
    const other = this.panes.find((each) => each !== pane);
    this.counterpart(pane, other, chosen);
    this.side.replaceChildren(detailsOf(this, pane, chosen), this.elsewhere(pane, other, chosen));
    this.side.scrollTop = 0;
  }

  counterpart(pane, other, chosen) {
    this.same =
      chosen && chosen.type !== "block" ? this.sameAs(chosen, pane.index, other.index) : [];
    pane.setSame([]);
    other.setSame(this.same);
    const [first] = this.same;
    if (first) other.show(first, !other.element.hidden);
    else other.select(null);
  }

  // The node in another stage; of a kernel, its own value first, then all that is in it.
  sameAs(chosen, from, to) {
    const names = [
      chosen.name || chosen.reads[0] || "",
      ...(chosen.leaves ?? []).map((leaf) => leaf.name),
    ];
    return unique(names.flatMap((name) => this.model.links.follow(name, from, to)));
  }

  // A line on the other stage, where two are compared.
  elsewhere(pane, other, chosen) {
    if (!chosen || chosen.type === "block") return "";
    const name = this.model.stages[other.index].index
      ? `after ${this.model.stages[other.index].name}`
      : "as it came";
    if (!this.same.length) return el("p", { class: "elsewhere" }, `Not in the graph ${name}.`);
    const links = this.same.slice(0, 24).map((maker) =>
      el(
        "li",
        {},
        link(
          `${maker.leaves ? "kernel " : ""}%${maker.name}`,
          () => this.chose(other, maker, true),
          { class: "mono" },
        ),
      ),
    );
    return el(
      "div",
      { class: "elsewhere" },
      el("h4", {}, `In the graph ${name}`),
      el("ul", { class: "chips" }, links),
    );
  }

  stageChanged(pane) {
    this.search(false);
    this.chose(pane, pane.selected);
  }

  // From other parts of the page: a node by its name in a stage, or a stage.
  open(name, index) {
    const pane = this.panes[index === 0 ? 0 : 1];
    if (pane.index !== index) pane.setStage(index);
    this.active = pane;
    this.setSplit(this.split.firstChild.checked);
    const maker = name && this.model.stages[index].graph.maker(name);
    if (maker) this.chose(pane, maker, true);
  }

  // --- search

  search(move = true) {
    const words = this.query.value.trim().toLowerCase().replace(/^%/, "");
    const lists = this.panes.map((pane) => (words ? matching(pane.stage, words) : []));
    this.panes.forEach((pane, index) => pane.setMatches(lists[index]));
    this.found = lists.flatMap((list, index) =>
      this.panes[index].element.hidden ? [] : list.map((maker) => [this.panes[index], maker]),
    );
    this.at = -1;
    this.tell(words);
    if (move && words && this.found.length) this.go(1);
  }

  tell(words) {
    const count = this.found.length;
    this.tally.textContent = !words ? "" : count ? `${this.at + 1} of ${count}` : "nothing";
    this.tally.dataset.count = count;
  }

  go(step) {
    if (!this.found.length) return;
    this.at = (this.at + step + this.found.length) % this.found.length;
    this.tell(true);
    this.chose(...this.found[this.at], true);
  }

  searchKey(event) {
    if (event.key === "Enter") this.go(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") {
      this.query.value = "";
      this.search();
    } else return;
    event.preventDefault();
  }

  focusSearch() {
    this.query.select();
  }
}

// Nodes, and kernels without such nodes, in whose name, operator, type or source line the words stand.
function matching(stage, words) {
  const { model } = stage;
  const says = (maker) => {
    const kernel = maker.leaves ? model.kernelOf.get(maker.name)?.function : "";
    return [
      maker.names.join(" "),
      maker.op,
      kernel,
      maker.types.join(" "),
      maker.loc,
      model.code(maker.loc),
    ]
      .join("\n")
      .toLowerCase();
  };
  const fits = (maker) => maker.kind !== "storage" && (maker.said ??= says(maker)).includes(words);
  const leaves = stage.leaves.filter(fits),
    within = new Set(leaves.map((leaf) => leaf.region));
  const regions = stage.regions.filter((region) => !within.has(region) && fits(region));
  return [...leaves, ...regions].sort((a, b) => a.position - b.position);
}
