// What was written for the model, and the graph after each pass as text; each made when opened.

class SourcesTab {
  constructor(page) {
    this.page = page;
    const { model } = page,
      { data } = model;
    this.files = [
      ...(data.kernels
        ? [{ name: "kernels.cpp", note: "our kernels", language: "cpp", text: () => data.kernels }]
        : []),
      { name: "calls.py", note: "the calls, in order", language: "python", text: () => data.calls },
      ...model.stages.map((stage) => ({
        name: model.report.passes[stage.index].file || `${stage.name}.rw`,
        note: stage.same ? "as before" : stage.index ? `after ${stage.name}` : "as it came",
        language: "rw",
        text: () => stage.graph.text,
      })),
    ];
    this.views = new Map();
    this.list = el(
      "nav",
      { class: "files", "aria-label": "Files" },
      this.files.map((file, at) =>
        button([el("span", { class: "mono" }, file.name), el("small", {}, file.note)], () =>
          this.choose(at),
        ),
      ),
    );
    this.holder = el("div", { class: "codeholder" });
    this.element = el("div", { class: "sourcestab" }, this.list, this.holder);
    this.choose(0);
  }

  choose(at) {
    if (!this.views.has(at))
      this.views.set(at, new CodeView(this.files[at].text(), this.files[at].language));
    [...this.list.children].forEach((each, index) =>
      each.setAttribute("aria-current", index === at),
    );
    this.holder.replaceChildren(this.views.get(at).element);
    return this.views.get(at);
  }

  // Where a kernel of ours begins.
  open(name) {
    if (this.files[0].language === "cpp") this.choose(0).seek((line) => line.includes(`${name}(`));
  }
}
