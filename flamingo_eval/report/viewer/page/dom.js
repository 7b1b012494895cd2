// Elements from text: nothing that a model or a data set says is ever read as HTML.
"use strict";
const viewer = {};

(function (v) {
  // control characters, marks that turn text round, halves of characters: spelled out, as everywhere in this package
  const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu;

  v.visible = (text) =>
    String(text).replace(UNSAFE, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "value" || name === "checked") element[name] = value;
      else if (value !== null && value !== undefined && value !== false) {
        element.setAttribute(name, value === true ? "" : v.visible(value));
      }
    }
    for (const child of children.flat(3)) {
      if (child === null || child === undefined || child === false) continue;
      element.append(child instanceof Node ? child : document.createTextNode(v.visible(child)));
    }
    return element;
  }

  v.el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  v.svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // text of data or of a model: it keeps its direction to itself
  v.said = (text, kind) => v.el("bdi", { class: "said " + (kind || "") }, text);

  // as Python rounds: what stands exactly between two goes to the even one
  v.number = (value, digits = 1) => {
    if (value === null || value === undefined) return "–";
    const power = 10 ** digits, low = Math.floor(value * power);
    const between = value * power - low === 0.5 && (low + 0.5) / power === value;
    return (between && low % 2 === 0 ? low / power : value).toFixed(digits);
  };

  v.count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many || one + "s"}`;

  // a sentence at the foot of the window; of each sort the last one, until it is taken back
  const told = new Map();
  v.tell = (sort, text) => {
    told.set(sort, text);
    document.getElementById("status").textContent = [...told.values()].filter(Boolean).map(v.visible).join(" · ");
  };

  // puts something else into a box; what was unfolded stays so, and the focus stays where it was
  v.redraw = (box, ...content) => {
    const names = (root) => [...root.querySelectorAll("a, button, summary, input, select, [tabindex]")];
    const label = (one) => one.getAttribute("href") || one.getAttribute("name") || one.textContent;
    const before = names(box);
    const place = before.indexOf(document.activeElement);
    const at = place < 0 ? null : label(before[place]);
    const same = at === null ? 0 : before.slice(0, place).filter((one) => label(one) === at).length;
    const open = new Set([...box.querySelectorAll("details[open] > summary")].map((one) => one.textContent));
    box.replaceChildren(...content);
    for (const summary of box.querySelectorAll("details > summary")) if (open.has(summary.textContent)) summary.parentNode.open = true;
    if (at !== null) names(box).filter((one) => label(one) === at)[same]?.focus({ preventScroll: true });
  };

  v.section = (title, ...children) => v.el("section", {}, v.el("h2", {}, title), ...children);

  v.folded = (title, ...children) => v.el("details", {}, v.el("summary", {}, title), ...children);

  v.table = (head, rows, left) =>
    v.el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": head.filter(Boolean).join(", ") },
      v.el(
        "table",
        {},
        v.el("thead", {}, v.el("tr", {}, head.map((text, i) => v.el("th", { class: i >= left && "right", scope: "col" }, text)))),
        v.el("tbody", {}, rows.map((row) => v.el("tr", {}, row.map((cell, i) => v.el("td", { class: i >= left && "right" }, cell)))))
      )
    );

  v.bar = (share, title) => {
    const bar = v.el("span", { class: "bar", title: title || "" }, v.el("span", {}));
    bar.firstChild.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    return bar;
  };
})(viewer);
