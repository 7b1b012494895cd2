// The answers: a form that filters and sorts, and a table, a page at a time.
"use strict";

(function (v) {
  const PAGE = 100;
  let cache = null;

  // the rows that pass, remembered as long as nothing changes
  v.selected = (filter) => {
    const run = v.runs[Number(filter.run)] || v.runs[0];
    const other = v.runs.find((one) => one !== run);
    const key = JSON.stringify([filter, v.runs.map((one) => [one.size, one.info.version])]);
    if (cache === null || cache.key !== key) cache = { key, rows: v.select(run, other, filter) };
    return { run, other, rows: cache.rows };
  };

  v.addressOf = (run, row, filter) => {
    const trial = run.trial(row);
    const parts = [run.number, trial.benchmark, trial.shots, trial.seed, run.rows.id[row], run.rows.occurrence[row]];
    return "#/answer/" + parts.map((part) => encodeURIComponent(part)).join("/") + v.queryOf(filter);
  };

  v.listPage = (filter, first) => {
    const body = v.el("div", { id: "found" });
    const page = v.el("div", {}, v.el("h1", {}, "Answers"), form(filter), body);
    show(body, filter, first);
    return page;
  };

  v.refreshList = (filter) => {
    const body = document.getElementById("found");
    if (body) show(body, filter, Number(body.dataset.first || 0));
  };

  function show(body, filter, first) {
    const { run, other, rows } = v.selected(filter);
    const start = Math.min(first, Math.max(0, Math.floor((rows.length - 1) / PAGE) * PAGE));
    body.dataset.first = String(start);
    const shown = rows.slice(start, start + PAGE);
    const loading = run.size < run.info.rows ? `, ${v.count(run.info.rows - run.size, "row")} on their way` : "";
    const range = rows.length ? `${(start + 1).toLocaleString("en")} to ${(start + shown.length).toLocaleString("en")} of ` : "";
    body.replaceChildren(
      v.el("p", { id: "count", role: "status" }, `${range}${v.count(rows.length, "answer")}${loading}`),
      shown.length ? table(run, other, shown, filter) : v.el("p", {}, "Nothing passes this filter."),
      pager(body, filter, start, rows.length)
    );
  }

  function pager(body, filter, start, total) {
    const go = (to) => () => {
      show(body, filter, to);
      body.scrollIntoView({ block: "start" });
    };
    return v.el("p", { class: "pager" },
      v.el("button", { onclick: go(start - PAGE), disabled: start === 0 }, "Previous page"),
      v.el("button", { onclick: go(start + PAGE), disabled: start + PAGE >= total }, "Next page"));
  }

  function table(run, other, shown, filter) {
    const head = [["trial", "trial"], ["query", "id"], ["asked", "asked"], ["answer", "answer"], ...(other ? [[`in ${other.info.name}`, "other"]] : []),
      ["score", "score right"], ...(other ? [["difference", "difference right"]] : [])];
    const body = shown.map((row) => line(run, other, row, filter));
    return v.el("table", { class: "answers" },
      v.el("thead", {}, v.el("tr", {}, head.map(([text, kind]) => v.el("th", { scope: "col", class: kind }, v.said(text))))),
      v.el("tbody", {}, body));
  }

  function line(run, other, row, filter) {
    const { rows } = run, trial = run.trial(row);
    const cell = (name, ...content) => v.el("td", { class: name }, ...content);
    const failed = rows.failed[row];
    const marks = v.marksOf(run, row).map((mark) => v.el("span", { class: "tag" }, v.said(mark.tag)));
    const against = other && v.against(run, other, row);
    return v.el("tr", { "data-row": String(row), class: against && against.word },
      cell("trial", `${trial.benchmark}, ${v.count(trial.shots, "shot")}, seed ${trial.seed}`),
      cell("id", v.el("a", { href: v.addressOf(run, row, filter) }, v.said(rows.id[row])), marks),
      cell("asked", v.said(rows.text[row])),
      cell("answer", failed === null ? v.said(rows.answer[row]) : v.el("em", { class: "failed" }, "no answer: ", v.said(failed))),
      other && cell("other", against ? v.said(other.rows.answer[against.there]) : "–"),
      cell("score right", v.number(rows.score[row])),
      other && cell("difference right", against ? [against.word !== "same" && v.el("span", { class: "word" }, against.word), " ", signed(against.difference)] : ""));
  }

  const signed = (value) => (value === null ? "" : (value > 0 ? "+" : "") + v.number(value));

  const unique = (values) => [...new Set(values)];

  function form(filter) {
    const run = v.runs[Number(filter.run)] || v.runs[0];
    const change = (name) => (event) => {
      const next = { ...v.filterFrom(location.hash.split("?")[1] || ""), [name]: event.target.value };
      v.go("#/answers" + v.queryOf(next), true);
    };
    const select = (name, label, options) =>
      v.el("label", {}, label, v.el("select", { name, onchange: change(name) }, options.map(([value, text]) => v.el("option", { value, selected: filter[name] === value }, text))));
    const input = (name, label, attributes) =>
      v.el("label", {}, label, v.el("input", { name, value: filter[name], oninput: change(name), ...attributes }));
    const of = (name) => [["", "all"], ...unique(run.info.trials.map((t) => String(t[name]))).map((one) => [one, one])];
    const two = v.runs.length > 1;
    return v.el("form", { class: "filter", role: "search", onsubmit: (event) => event.preventDefault() },
      two && select("run", "Run", v.runs.map((one) => [String(one.number), one.info.name])),
      select("benchmark", "Benchmark", of("benchmark")),
      select("shots", "Shots", of("shots")),
      select("seed", "Seed", of("seed")),
      select("kind", "Kind", [["", "all"], ...kindsOf(run).map((one) => [one, one])]),
      select("state", "Answered", [["", "all"], ["answered", "answered"], ["failed", "failed"]]),
      two && select("change", "Against the other", [["", "all"], ["broke", "broke"], ["fixed", "fixed"], ["changed", "changed, same score"], ["any", "any change"]]),
      input("min", "Score from", { type: "number", step: "any", inputmode: "decimal" }),
      input("max", "to", { type: "number", step: "any", inputmode: "decimal" }),
      input("text", "Text", { type: "search", placeholder: "in id, question, answer" }),
      select("sort", "Order", [["", "as asked"], ["score-up", "lowest score first"], ["score-down", "highest score first"],
        ...(two ? [["difference-up", "broke most first"], ["difference-down", "fixed most first"]] : [])]),
      v.el("a", { class: "button", href: "#/answers", role: "button" }, "Clear"));
  }

  // answer types, or class names; some benchmarks have a thousand
  function kindsOf(run) {
    const found = new Set();
    for (let row = 0; row < run.size && found.size < 2000; row++) if (run.rows.kind[row]) found.add(run.rows.kind[row]);
    return [...found].sort();
  }
})(viewer);
