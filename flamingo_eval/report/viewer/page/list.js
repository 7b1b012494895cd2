// The answers: a form that filters and sorts, and a table, a page at a time.
"use strict";

(function (v) {
  const PAGE = 100;
  let cache = null;

  // the rows that pass, remembered as long as nothing changes
  v.selected = (filter) => {
    const run = v.runs[Number(filter.run)] || v.runs[0];
    const other = v.runs.find((one) => one !== run);
    const key = JSON.stringify([{ ...filter, from: "" }, v.runs.map((one) => [one.size, one.info.version])]);
    if (cache === null || cache.key !== key) cache = { key, rows: v.select(run, other, filter) };
    return { run, other, rows: cache.rows };
  };

  v.addressOf = (run, row, filter) => {
    const trial = run.trial(row);
    const parts = [run.number, trial.benchmark, trial.shots, trial.seed, run.rows.id[row], run.rows.occurrence[row]];
    return "#/answer/" + parts.map((part) => encodeURIComponent(part)).join("/") + v.queryOf(filter);
  };

  // `last`: the address of the answer that one comes from
  v.listPage = (filter, last) => {
    const selection = (v.runs[Number(filter.run)] || v.runs[0]).info.selection;
    const page = v.el("div", {}, v.el("h1", {}, "Answers"), selection && v.el("p", { class: "warning" }, v.said(`This page has ${selection}.`)),
      v.el("div", { id: "asked" }), v.el("div", { id: "found" }));
    v.refreshList(filter, page);
    const link = last && [...page.querySelectorAll("td.id a")].find((one) => one.getAttribute("href") === last);
    if (link) setTimeout(() => { link.focus({ preventScroll: true }); link.scrollIntoView({ block: "center" }); });
    return page;
  };

  // draws again what has changed; a form in use is left alone
  v.refreshList = (filter, page = document) => {
    const form = page.querySelector("#asked"), body = page.querySelector("#found");
    const choices = choicesFor(filter);
    if (form.dataset.of !== JSON.stringify(choices) && !(form.contains(document.activeElement) && document.activeElement.name !== "run")) {
      form.dataset.of = JSON.stringify(choices);
      v.redraw(form, drawnForm(filter, choices));
    }
    const { run, other, rows } = v.selected(filter);
    const first = Number(filter.from) || 0;
    const start = Math.min(Math.max(0, first - (first % PAGE)), Math.max(0, Math.floor((rows.length - 1) / PAGE) * PAGE));
    const shown = rows.slice(start, start + PAGE);
    const loading = run.size < run.info.rows ? `, ${v.count(run.info.rows - run.size, "row")} on their way` : "";
    const range = rows.length ? `${(start + 1).toLocaleString("en")} to ${(start + shown.length).toLocaleString("en")} of ` : "";
    const count = v.el("p", { id: "count", role: "status" }, `${range}${v.count(rows.length, "answer")}${loading}`);
    v.redraw(body, count, shown.length ? table(run, other, shown, filter) : v.el("p", {}, "Nothing passes this filter."), pager(filter, start, rows.length));
  };

  function pager(filter, start, total) {
    const go = (to) => () => {
      v.go("#/answers" + v.queryOf({ ...filter, from: String(to) }), true);
      scrollTo(0, 0);
    };
    return v.el("p", { class: "pager" },
      v.el("button", { onclick: go(start - PAGE), disabled: start === 0 }, "Previous page"),
      v.el("button", { onclick: go(start + PAGE), disabled: start + PAGE >= total }, "Next page"));
  }

  function table(run, other, shown, filter) {
    const captions = run.info.trials.some((trial) => !run.info.ranking.includes(trial.benchmark));
    const head = [["trial", "trial"], ["query", "id"], [captions ? "question or reference" : "asked", "asked"], ["answer", "answer"],
      ...(other ? [[`in ${other.info.name}`, "other"]] : []), ["score", "score right"],
      ...(other ? [[`from ${v.runs[0].info.name} to ${v.runs[1].info.name}`, "difference right"]] : [])];
    return v.el("table", { class: "answers" },
      v.el("thead", {}, v.el("tr", {}, head.map(([text, kind]) => v.el("th", { scope: "col", class: kind }, v.said(text))))),
      v.el("tbody", {}, shown.map((row) => line(run, other, row, filter))));
  }

  function line(run, other, row, filter) {
    const { rows } = run, trial = run.trial(row);
    const cell = (name, ...content) => v.el("td", { class: name }, ...content);
    const failed = rows.failed[row];
    const marks = v.marksOf(run, row).map((mark) => v.el("span", { class: "tag" }, v.said(mark.tag)));
    const again = rows.occurrence[row] > 0 && v.el("span", { class: "note" }, ` asked again (${rows.occurrence[row] + 1})`);
    const against = other && v.against(run, other, row);
    return v.el("tr", { class: against && against.word },
      cell("trial", `${trial.benchmark}, ${v.count(trial.shots, "shot")}, seed ${trial.seed}`),
      cell("id", v.el("a", { href: v.addressOf(run, row, filter) }, v.said(rows.id[row] || "(empty)")), again, marks),
      cell("asked", v.said(rows.text[row])),
      cell("answer", failed === null ? v.said(rows.answer[row]) : v.el("em", { class: "failed" }, "no answer: ", v.said(failed))),
      other && cell("other", against ? v.said(other.rows.answer[against.there]) : "–"),
      cell("score right", v.number(rows.score[row])),
      other && cell("difference right", against && against.word !== "same" ? [v.el("span", { class: "word" }, against.word), " ", signed(against.difference)] : ""));
  }

  const signed = (value) => (value === null ? "" : (value > 0 ? "+" : "") + v.number(value));

  const unique = (values) => [...new Set(values)];

  // what each field of the form can be
  function choicesFor(filter) {
    const run = v.runs[Number(filter.run)] || v.runs[0];
    const of = (name) => [["", "all"], ...unique(run.info.trials.map((t) => String(t[name]))).map((one) => [one, one])];
    const two = v.runs.length > 1;
    return {
      ...(two ? { run: ["Run", v.runs.map((one) => [String(one.number), one.info.name])] } : {}),
      benchmark: ["Benchmark", of("benchmark")],
      shots: ["Shots", of("shots")],
      seed: ["Seed", of("seed")],
      kind: ["Kind", [["", "all"], ...kindsOf(run).map((one) => [one, one])]],
      state: ["Answered", [["", "all"], ["answered", "answered"], ["failed", "failed"]]],
      ...(two ? { change: ["From the first to the second", [["", "all"], ["broke", "broke"], ["fixed", "fixed"], ["changed", "changed, same score"], ["any", "any change"]]] } : {}),
      min: ["Score from", null],
      max: ["to", null],
      text: ["Text", null],
      sort: ["Order", [["", "as asked"], ["score-up", "lowest score first"], ["score-down", "highest score first"],
        ...(two ? [["difference-up", "broke most first"], ["difference-down", "fixed most first"]] : [])]],
    };
  }

  function drawnForm(filter, choices) {
    const change = (name) => (event) => {
      const next = { ...v.filterFrom(location.hash.split("?")[1] || ""), [name]: event.target.value, from: "0" };
      if (name === "run") Object.assign(next, { benchmark: "", shots: "", seed: "", kind: "" });
      v.go("#/answers" + v.queryOf(next), true);
    };
    const fields = Object.entries(choices).map(([name, [label, options]]) => {
      const field = options
        ? v.el("select", { name, onchange: change(name) }, options.map(([value, text]) => v.el("option", { value, selected: filter[name] === value }, text)))
        : v.el("input", { name, value: filter[name], oninput: change(name), ...(name === "text" ? { placeholder: "in id, question, answer" } : { inputmode: "decimal", size: "6" }) });
      return v.el("label", { class: name }, label, field);
    });
    return v.el("form", { class: "filter", role: "search", onsubmit: (event) => event.preventDefault() }, fields,
      v.el("a", { class: "button", href: "#/answers", role: "button" }, "Clear"));
  }

  // answer types, or class names; some benchmarks have a thousand
  function kindsOf(run) {
    const found = new Set();
    for (let row = 0; row < run.size && found.size < 2000; row++) if (run.rows.kind[row]) found.add(run.rows.kind[row]);
    return [...found].sort();
  }
})(viewer);
