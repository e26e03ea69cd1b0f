// Text of programs, lightly coloured, in pieces that are laid out when they are scrolled to.

const WORDS = {
  cpp: "alignas auto bool break case char const constexpr continue default do double else enum extern false float for if inline int long namespace nullptr operator return short signed sizeof static static_cast struct switch template true typedef typename union unsigned using void volatile while f16 f32 f64 f16v f32v f64v i8 i16 i32 i64 u8 u16 u32 u64 i64v bf16 KERNEL",
  python:
    "and as assert async await break class continue def del elif else except False finally for from global if import in is lambda None nonlocal not or pass raise return True try while with yield",
  rw: "graph return update where in hint divisor param buffer saved tangent const mutable body none true false strides on forward backward seq",
};
const COMMENTS = {
  cpp: String.raw`\/\/[^\n]*|\/\*[\s\S]*?\*\/|^[ \t]*#[^\n]*`,
  python: String.raw`#[^\n]*|"""[\s\S]*?"""`,
  rw: String.raw`^[ \t]*#[^\n]*| @ [^\n]*`,
};
const PIECE = 200;

function patternOf(language) {
  const parts = [
    `(?<comment>${COMMENTS[language]})`,
    String.raw`(?<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')`,
    language === "rw" ? String.raw`(?<name>%[\w.]+)` : String.raw`(?<name>\b\w+(?=\())`,
    String.raw`(?<word>\b(?:${WORDS[language].replaceAll(" ", "|")})\b)`,
    String.raw`(?<number>\b\d[\w.]*)`,
  ];
  return new RegExp(parts.join("|"), "gm");
}

function coloured(text, language) {
  const made = document.createDocumentFragment();
  let last = 0;
  for (const found of text.matchAll(patternOf(language))) {
    const kind = Object.entries(found.groups).find(([, part]) => part !== undefined)[0];
    made.append(text.slice(last, found.index), el("span", { class: `t-${kind}` }, found[0]));
    last = found.index + found[0].length;
  }
  made.append(text.slice(last));
  return made;
}

class CodeView {
  constructor(text, language) {
    this.lines = text.split("\n");
    this.element = el("div", { class: "code mono" });
    this.pieces = [];
    for (let at = 0; at < this.lines.length; at += PIECE)
      this.pieces.push(this.piece(at, language));
    this.element.append(...this.pieces);
  }

  // Some lines, coloured when they come near the view.
  piece(at, language) {
    const lines = this.lines.slice(at, at + PIECE);
    const text = el("pre", {}, lines.join("\n"));
    const numbers = el(
      "pre",
      { class: "lines", "aria-hidden": "true" },
      lines.map((_, i) => at + i + 1).join("\n"),
    );
    const made = el(
      "div",
      { class: "piece", style: { "contain-intrinsic-size": `auto ${lines.length * 18}px` } },
      numbers,
      text,
    );
    const watch = new IntersectionObserver(
      (seen) => {
        if (!seen.some((entry) => entry.isIntersecting)) return;
        watch.disconnect();
        text.replaceChildren(coloured(lines.join("\n"), language));
      },
      { rootMargin: "400px" },
    );
    watch.observe(made);
    return made;
  }

  // Scrolls to the first line that fits, and shows where it is.
  seek(fits) {
    const line = this.lines.findIndex(fits);
    if (line < 0) return false;
    const piece = this.pieces[Math.floor(line / PIECE)],
      mark = el("div", { class: "seek" });
    this.element.querySelectorAll(".seek").forEach((each) => each.remove());
    mark.style.setProperty("top", `${(line % PIECE) * 18}px`);
    piece.append(mark);
    requestAnimationFrame(() => mark.scrollIntoView({ block: "center" }));
    return true;
  }
}
