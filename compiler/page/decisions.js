// What passes did and would not do, in their own sentences.

class DecisionsTab {
  constructor(page) {
    this.page = page;
    const { decisions, passes } = page.model.report;
    const ran = unique(passes.map((row) => row.name));
    const spoke = unique([...ran, ...decisions.map((d) => d.pass)]).filter((name) =>
      decisions.some((d) => d.pass === name),
    );
    this.query = el("input", {
      type: "search",
      placeholder: "Search values and sentences",
      "aria-label": "Search decisions",
      oninput: debounced(() => this.fill()),
    });
    this.pass = choice(
      [["", "all passes"], ...spoke.map((name) => [name, name])],
      "",
      () => this.fill(),
      { "aria-label": "Pass" },
    );
    this.kind = choice(
      [
        ["", "decided and refused"],
        ["decided", "decided"],
        ["refused", "refused"],
      ],
      "",
      () => this.fill(),
      { "aria-label": "Kind" },
    );
    this.tally = el("output", { class: "tally" });
    this.list = el("div", { class: "decisions" });
    this.element = el(
      "div",
      { class: "decisionstab" },
      el(
        "div",
        { class: "toolbar" },
        el("div", { class: "search" }, this.query, this.tally),
        this.pass,
        this.kind,
      ),
      this.list,
    );
    this.fill();
  }

  fill() {
    const words = this.query.value.trim().toLowerCase().replace(/^%/, ""),
      pass = this.pass.value,
      kind = this.kind.value;
    const { decisions } = this.page.model.report;
    const found = decisions.filter(
      (d) =>
        (!pass || d.pass === pass) &&
        (!kind || d.kind === kind) &&
        (!words || `${d.subject} ${d.sentence}`.toLowerCase().includes(words)),
    );
    this.tally.textContent =
      found.length === decisions.length
        ? plural(found.length, "decision")
        : `${countText(found.length)} of ${countText(decisions.length)}`;
    this.tally.dataset.count = found.length;
    grown(found, (decision) => this.row(decision), this.list);
  }

  row(decision) {
    return el(
      "div",
      { class: `decision ${decision.kind}` },
      el("span", { class: "passname" }, decision.pass),
      link(`%${decision.subject}`, () => this.page.openValue(decision.subject), { class: "mono" }),
      el("span", { class: "kind" }, decision.kind),
      el("span", { class: "sentence" }, decision.sentence),
    );
  }

  // Only those of a pass, or those in which words stand.
  open({ pass = "", query = "" }) {
    this.pass.value = pass;
    if (this.pass.value !== pass) this.pass.value = "";
    this.query.value = query;
    this.kind.value = "";
    this.fill();
  }
}
