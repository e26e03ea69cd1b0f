// Elements. Whatever comes from a model reaches the page as text, never as markup.

function el(tag, given = {}, ...children) {
  return filled(document.createElement(tag), given, children);
}

function svg(tag, given = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), given, children);
}

function filled(made, given, children) {
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style")
      for (const [name, to] of Object.entries(value)) made.style.setProperty(name, to);
    else if (key === "class") made.setAttribute("class", value);
    else if (key === "data") Object.assign(made.dataset, value);
    else if (key === "value" || key === "checked") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(
    ...children
      .flat(Infinity)
      .filter((child) => child !== null && child !== undefined && child !== false),
  );
  return made;
}

function button(label, act, given = {}) {
  return el("button", { type: "button", onclick: act, ...given }, label);
}

// A word that leads somewhere within the page.
function link(label, act, given = {}) {
  return button(label, act, { ...given, class: `link ${given.class ?? ""}` });
}

function choice(options, chosen, act, given = {}) {
  const made = el(
    "select",
    { onchange: () => act(made.value), ...given },
    options.map(([value, label]) => el("option", { value }, label)),
  );
  made.value = chosen;
  return made;
}

function checkbox(label, checked, act, title) {
  const box = el("input", { type: "checkbox", checked, onchange: () => act(box.checked) });
  return el("label", { class: "check", title }, box, label);
}

// A list whose rows are made when they are scrolled to, some at a time. Gives a function that makes
// all rows up to one, and returns that.
function grown(items, rowOf, into, step = 120) {
  let shown = 0;
  const end = el("div", { class: "more" });
  const watch = new IntersectionObserver(
    (seen) => seen.some((entry) => entry.isIntersecting) && more(),
  );
  function more() {
    const next = items.slice(shown, shown + step);
    shown += next.length;
    end.before(...next.map(rowOf));
    if (shown >= items.length) {
      watch.disconnect();
      end.remove();
    }
    // What is still in view has to be filled: the watch speaks only when that changes.
    else
      requestAnimationFrame(() => {
        watch.unobserve(end);
        watch.observe(end);
      });
  }
  into.replaceChildren(end);
  watch.observe(end);
  more();
  return (index) => {
    while (shown <= index && shown < items.length) more();
    return into.querySelectorAll(":scope > [data-row]")[index];
  };
}

function debounced(act, wait = 80) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), wait);
  };
}

// Keeps `act` told of an element's size.
function sized(element, act) {
  new ResizeObserver(() => act(element.clientWidth, element.clientHeight)).observe(element);
}
