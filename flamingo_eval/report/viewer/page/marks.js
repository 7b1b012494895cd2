// What a reader says of answers; kept beside the run, or, in a bundle, in this browser.
"use strict";

(function (v) {
  const TAGS = ["wrong reference", "ambiguous"];
  const PLACE = "flamingo-eval marks " + location.pathname;

  // a later mark with the same tag takes the place of an earlier one; one that is `gone` takes it back
  v.currentMarks = () => {
    const found = new Map();
    for (const mark of [...v.marks, ...own()]) {
      const key = [mark.run, keyOf(mark), mark.tag].join("\u0000");
      found.delete(key);
      if (!mark.gone) found.set(key, mark);
    }
    return [...found.values()];
  };

  const keyOf = (mark) => v.keyOf(mark.benchmark, mark.shots, mark.seed, mark.query_id, mark.occurrence);

  let index = null, indexed = null;
  v.marksOf = (run, row) => {
    const state = JSON.stringify([v.marks.length, own().length]);
    if (indexed !== state) {
      indexed = state;
      index = new Map();
      for (const mark of v.currentMarks()) {
        const key = `${mark.run}\u0000${keyOf(mark)}`;
        index.set(key, [...(index.get(key) || []), mark]);
      }
    }
    return index.get(`${run.info.name}\u0000${run.key(row)}`) || [];
  };

  // a bundle has no server: its marks are this browser's
  let memory = [];
  function own() {
    if (v.live) return [];
    try {
      return JSON.parse(localStorage.getItem(PLACE) || "[]");
    } catch {
      return memory;
    }
  }

  function keep(mark) {
    memory = [...own(), { ...mark, when: new Date().toISOString() }];
    try {
      localStorage.setItem(PLACE, JSON.stringify(memory));
    } catch {
      v.tell("This browser keeps nothing for pages from the disk: save the marks before you close it.");
    }
  }

  async function add(run, row, tag, gone) {
    const trial = run.trial(row);
    const mark = { run: run.info.name, benchmark: trial.benchmark, shots: trial.shots, seed: trial.seed, query_id: run.rows.id[row], occurrence: run.rows.occurrence[row], tag, gone };
    try {
      if (v.live) v.marks = [...v.marks, await v.send(mark)];
      else keep(mark);
      v.tell("");
    } catch (error) {
      v.tell(`The mark was not kept: ${error.message}`);
    }
  }

  v.markForm = (run, row) => {
    const box = v.el("section", { class: "marks" });
    const draw = () => {
      const made = v.marksOf(run, row);
      const has = (tag) => made.some((mark) => mark.tag === tag);
      const toggle = (tag) => async () => {
        await add(run, row, tag, has(tag));
        draw();
      };
      const words = v.el("input", { name: "note", placeholder: "in your own words", "aria-label": "A mark in your own words", maxlength: "500" });
      box.replaceChildren(v.el("h2", {}, "Marks"),
        v.el("p", { class: "pager" }, TAGS.map((tag) => v.el("button", { onclick: toggle(tag), "aria-pressed": String(has(tag)) }, tag))),
        v.el("form", { onsubmit: async (event) => { event.preventDefault(); if (words.value.trim()) { await add(run, row, words.value.trim(), false); draw(); } } }, words, v.el("button", {}, "Add")),
        v.el("ul", {}, made.filter((mark) => !TAGS.includes(mark.tag)).map((mark) => v.el("li", {}, v.said(mark.tag), " ", v.el("button", { onclick: toggle(mark.tag) }, "take back")))),
        v.el("p", { class: "note" }, v.live ? ["kept in ", v.said(v.kept)] : "kept in this browser; save them from the page Marks"));
    };
    draw();
    return box;
  };

  v.marksPage = () => {
    const made = v.currentMarks();
    const rows = made.map((mark) => {
      const run = v.runs.find((one) => one.info.name === mark.run);
      const row = run && run.find(keyOf(mark));
      const id = v.said(mark.query_id);
      return [v.said(mark.tag), row === undefined ? id : v.el("a", { href: v.addressOf(run, row, v.NO_FILTER) }, id),
        `${mark.benchmark}, ${v.count(mark.shots, "shot")}, seed ${mark.seed}`, v.said(mark.run), mark.when];
    });
    return v.el("div", {}, v.el("h1", {}, "Marks"),
      v.el("p", {}, v.count(made.length, "mark"), v.live ? [", kept in ", v.said(v.kept)] : ", kept in this browser"),
      made.length > 0 && v.el("p", {}, v.el("button", { onclick: save }, "Save as JSON lines")),
      made.length > 0 && v.table(["mark", "query", "trial", "run", "when"], rows, 5));
  };

  function save() {
    const lines = v.currentMarks().map((mark) => JSON.stringify(mark) + "\n");
    const address = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    const link = v.el("a", { href: address, download: "marks.jsonl" });
    link.click();
    URL.revokeObjectURL(address);
  }
})(viewer);
