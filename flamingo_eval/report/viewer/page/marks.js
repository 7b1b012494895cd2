// What a reader says of answers; kept beside the run, or, in a bundle, in this browser.
"use strict";

(function (v) {
  const TAGS = ["wrong reference", "ambiguous"];
  const PLACE = "flamingo-eval marks " + location.pathname;

  // a later mark with the same tag takes the place of an earlier one; one that is `gone` takes it back
  v.currentMarks = () => {
    const found = new Map();
    for (const [number, marks] of all().entries()) {
      for (const mark of marks) {
        const key = [number, keyOf(mark), mark.tag].join("\u0000");
        found.delete(key);
        if (!mark.gone) found.set(key, { number, mark });
      }
    }
    return [...found.values()];
  };

  // of each run
  const all = () => (v.live ? v.marks : v.runs.map((_, number) => [...(v.marks[number] || []), ...own().filter((one) => one.number === number).map((one) => one.mark)]));

  const keyOf = (mark) => v.keyOf(mark.benchmark, mark.shots, mark.seed, mark.query_id, mark.occurrence);

  let index = null, indexed = null;
  v.marksOf = (run, row) => {
    const state = JSON.stringify([v.marks.map((marks) => marks.length), v.live ? 0 : own().length]);
    if (indexed !== state) {
      indexed = state;
      index = new Map();
      for (const { number, mark } of v.currentMarks()) {
        const key = `${number}\u0000${keyOf(mark)}`;
        index.set(key, [...(index.get(key) || []), mark]);
      }
    }
    return index.get(`${run.number}\u0000${run.key(row)}`) || [];
  };

  // a bundle has no server: its marks are this browser's
  let memory = [];
  function own() {
    if (v.live) return [];
    try {
      const kept = JSON.parse(localStorage.getItem(PLACE) || "[]");
      return Array.isArray(kept) ? kept.filter((one) => one && one.mark) : [];
    } catch {
      return memory;
    }
  }

  function keep(number, mark) {
    memory = [...own(), { number, mark: { ...mark, when: new Date().toISOString() } }];
    try {
      localStorage.setItem(PLACE, JSON.stringify(memory));
    } catch {
      v.tell("mark", "This browser keeps nothing for pages from the disk: save the marks before you close it.");
    }
  }

  async function add(run, query, tag, gone) {
    const mark = { run: run.info.name, ...query, tag, gone };
    try {
      if (v.live) {
        const made = await v.send(run, mark);
        v.marks = v.marks.map((marks, number) => (number === run.number ? [...marks, made] : marks));
      } else keep(run.number, mark);
      v.tell("mark", "");
    } catch (error) {
      v.tell("mark", `The mark was not kept: ${error.message}`);
    }
  }

  v.markForm = (run, row) => {
    const box = v.el("section", { class: "marks" }), trial = run.trial(row);
    // what is marked is this query, wherever its row will be
    const query = { benchmark: trial.benchmark, shots: trial.shots, seed: trial.seed, query_id: run.rows.id[row], occurrence: run.rows.occurrence[row] };
    const draw = () => {
      const made = v.marksOf(run, run.find(keyOf(query)));
      const has = (tag) => made.some((mark) => mark.tag === tag);
      const toggle = (tag) => async () => {
        await add(run, query, tag, has(tag));
        draw();
      };
      const words = v.el("input", { name: "note", placeholder: "in your own words", "aria-label": "A mark in your own words", maxlength: "500" });
      v.redraw(box, v.el("h2", {}, "Marks"),
        v.el("p", { class: "pager" }, TAGS.map((tag) => v.el("button", { onclick: toggle(tag), "aria-pressed": String(has(tag)) }, tag))),
        v.el("form", { onsubmit: async (event) => { event.preventDefault(); if (words.value.trim()) { await add(run, query, words.value.trim(), false); draw(); } } }, words, v.el("button", {}, "Add")),
        v.el("ul", {}, made.filter((mark) => !TAGS.includes(mark.tag)).map((mark) => v.el("li", {}, v.said(mark.tag), " ", v.el("button", { onclick: toggle(mark.tag) }, "take back")))),
        v.el("p", { class: "note" }, v.live ? ["kept in ", v.said(v.kept[run.number])] : "kept in this browser; save them from the page Marks"));
    };
    draw();
    return box;
  };

  v.marksPage = () => {
    const made = v.currentMarks();
    const rows = made.map(({ number, mark }) => {
      const run = v.runs[number], row = run.find(keyOf(mark));
      const id = v.said(mark.query_id);
      return [v.said(mark.tag), row === undefined ? id : v.el("a", { href: v.addressOf(run, row, { ...v.NO_FILTER, run: String(number) }) }, id),
        `${mark.benchmark}, ${v.count(mark.shots, "shot")}, seed ${mark.seed}`, v.said(run.info.name), mark.when];
    });
    return v.el("div", {}, v.el("h1", {}, "Marks"),
      v.el("p", {}, v.count(made.length, "mark"), v.live ? [", kept in ", v.said(v.kept.join(", "))] : ", kept in this browser"),
      made.length > 0 && v.el("p", {}, v.el("button", { onclick: save }, "Save as JSON lines")),
      made.length > 0 && v.table(["mark", "query", "trial", "run", "when"], rows, 5));
  };

  function save() {
    const lines = v.currentMarks().map(({ mark }) => JSON.stringify(mark) + "\n");
    const address = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    const link = v.el("a", { href: address, download: "marks.jsonl" });
    link.click();
    URL.revokeObjectURL(address);
  }
})(viewer);
