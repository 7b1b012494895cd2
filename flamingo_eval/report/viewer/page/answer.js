// One answer: the prompt as the model saw it, what it said, what that was compared with, and how the score came about.
"use strict";

(function (v) {
  v.answerPage = (address, filter) => {
    const [number, benchmark, shots, seed, id, occurrence] = address;
    const run = v.runs[Number(number)];
    const row = run && run.find(v.keyOf(benchmark, shots, seed, id, occurrence));
    if (row === undefined) {
      const loading = v.runs.some((one) => one.size < one.info.rows);
      return v.el("p", { class: "missing" }, loading ? "Loading." : "This run has no such answer.");
    }
    const page = v.el("article", { class: "one", "data-of": v.stateOf(run, row) }, head(run, row, filter), v.el("div", { class: "parts" }, v.el("p", {}, "Loading.")));
    fillIn(page, run, row, filter);
    return page;
  };

  // what an answer's page depends on: when this is another text, it is drawn anew
  v.stateOf = (run, row) => {
    const { rows } = run, benchmark = run.trial(row).benchmark;
    const others = v.runs.map((one) => one.info.trials.filter((t) => t.benchmark === benchmark)
      .map((t) => one.find(v.keyOf(benchmark, t.shots, t.seed, rows.id[row], rows.occurrence[row])) !== undefined));
    return JSON.stringify([v.runs.map((one) => one.info.version), others]);
  };

  const remarks = (detail) => v.el("div", {}, detail.remarks.map((text) => v.el("p", { class: "warning" }, v.said(text))));

  async function fillIn(page, run, row, filter) {
    const parts = page.querySelector(".parts");
    try {
      const detail = await run.detail(row);
      parts.replaceChildren(remarks(detail), prompt(detail), said(run, row, detail), compared(run, row, detail), everywhere(run, row, filter), otherRun(run, row), v.markForm(run, row), exact(detail));
      explain(parts, run, row);
    } catch (error) {
      parts.replaceChildren(v.el("p", { class: "failed" }, error.message));
    }
  }

  function head(run, row, filter) {
    const trial = run.trial(row), { rows } = run;
    filter = { ...filter, run: String(run.number) };
    const { rows: selected } = v.selected(filter);
    const place = selected.indexOf(row);
    const way = (to, text, rel) => (to === undefined ? v.el("span", { class: "button off" }, text) : v.el("a", { class: "button", rel, href: v.addressOf(run, to, filter) }, text));
    return v.el("header", {},
      v.el("h1", {}, "Query ", v.said(rows.id[row])),
      v.el("p", {}, `${trial.benchmark}, ${v.count(trial.shots, "shot")}, seed ${trial.seed}`, v.runs.length > 1 && [", ", v.said(run.info.name)]),
      v.el("nav", { "aria-label": "Answers", class: "pager" },
        v.el("a", { class: "button", rel: "up", href: "#/answers" + v.queryOf(filter) }, "All answers"),
        way(place > 0 ? selected[place - 1] : undefined, "Previous", "prev"),
        way(place >= 0 ? selected[place + 1] : undefined, "Next", "next"),
        place >= 0 && v.el("span", {}, `${(place + 1).toLocaleString("en")} of ${selected.length.toLocaleString("en")}`)));
  }

  function image(one, what) {
    if (one.problem) return v.el("p", { class: "failed" }, v.said(one.problem));
    const picture = v.el("img", { src: `images/${one.file}`, alt: what, title: one.path });
    picture.addEventListener("error", () => {
      const box = v.el("p", { class: "failed" }, "this image can't be shown: ", v.said(one.path));
      picture.replaceWith(box);
      if (v.live) fetch(picture.src).then((answer) => answer.json()).then((data) => box.replaceChildren(v.said(data.error)), () => {});
    });
    return picture;
  }

  function turn(one, what, query) {
    const hidden = one.hidden.length > 0 && v.el("p", { class: "note" }, "shown as text alone; its image is not part of the prompt");
    return v.el("li", { class: (query ? "query" : "demonstration") + (one.same ? " same" : "") },
      v.el("div", { class: "images" }, one.images.map((part) => image(part, what))),
      v.el("div", { class: "texts" },
        v.el("p", { class: "what" }, query ? "query " : "demonstration ", v.said(one.id), one.same && v.el("strong", { class: "copied" }, " same as the answer")),
        v.el("p", {}, v.said(one.text, "text"), " ", one.answer !== null && v.said(one.answer, "given")),
        hidden));
  }

  function prompt(detail) {
    if (detail.rendering === "elsewhere") {
      const note = v.el("p", { class: "note" }, "The answers were given elsewhere: what the system was shown is not known.");
      return v.section("What was asked", note, v.el("ol", { class: "turns" }, turn(detail.turns.at(-1), "query", true)));
    }
    const turns = detail.turns.map((one, i) => turn(one, i < detail.turns.length - 1 ? `demonstration ${i + 1}` : "query", i === detail.turns.length - 1));
    const count = detail.turns.length - 1;
    const order = count > 1 ? ", in this order" : "";
    const several = detail.orders > 1 ? `; asked in ${detail.orders} orders, of which this is the first` : "";
    return v.section("What the model saw", v.el("p", { class: "note" }, `${v.count(count, "demonstration")}${order}${several}`), v.el("ol", { class: "turns" }, turns));
  }

  function said(run, row, detail) {
    const failed = run.rows.failed[row];
    if (failed !== null) return v.section("What the model answered", v.el("p", { class: "failed" }, "no answer: ", v.said(failed)));
    if (detail.raw === null) return v.section("What the model answered", likeliest(detail), v.el("p", { class: "final" }, v.said(run.rows.answer[row])));
    const raw = detail.raw === run.rows.answer[row] ? null : v.el("p", { class: "raw" }, v.el("span", { class: "note" }, "raw "), v.said(detail.raw, "text"));
    return v.section("What the model answered", v.el("p", { class: "final" }, v.said(run.rows.answer[row] || "(nothing)")), raw);
  }

  function likeliest(detail) {
    const values = detail.logprobs.map(([, value]) => (value === null ? -Infinity : value));
    const top = Math.max(...values);
    const rows = detail.logprobs.map(([name, value]) => {
      const right = detail.kinds.includes(name);
      return [v.el(right ? "strong" : "span", {}, v.said(name), right && " (right)"), v.bar(value === null ? 0 : Math.exp(value - top), "likelihood, of the likeliest"), value === null ? "-∞" : value.toFixed(4)];
    });
    const more = detail.names > rows.length ? v.el("p", { class: "note" }, `${rows.length} of ${detail.names} names`) : null;
    return v.el("div", {}, v.table(["name", "", "log-likelihood"], rows, 2), more);
  }

  function compared(run, row, detail) {
    const references = v.el("ul", { class: "references" }, detail.references.map((one) =>
      Object.assign(v.el("li", {}, v.said(one.text), one.count > 1 && v.el("span", { class: "times" }, ` × ${one.count}`)), { reference: one.text })));
    const kinds = detail.kinds.length > 0 && v.el("p", { class: "note" }, v.said(detail.kinds.join(", ")));
    const none = detail.references.length ? null : v.el("p", {}, "The answers of this split are not public.");
    return v.section("What it was compared with", kinds, references, none,
      v.el("p", { class: "score" }, "score ", v.el("strong", {}, v.number(run.rows.score[row], 2))), v.el("div", { class: "explanation" }));
  }

  async function explain(parts, run, row) {
    const box = parts.querySelector(".explanation");
    let found;
    try {
      found = await run.explain(row);
    } catch (error) {
      found = { lines: [], parts: {}, agreeing: null, problem: error.message };
    }
    const names = Object.entries(found.parts);
    const most = Math.max(1e-9, ...names.map(([, value]) => value));
    box.replaceChildren(
      v.el("ul", {}, [...found.lines, ...(found.problem ? [found.problem] : [])].map((line) => v.el("li", {}, v.said(line)))),
      names.length ? v.table(["part", "", "score"], names.map(([name, value]) => [name, v.bar(value / most), v.number(value, 2)]), 2) : "");
    if (found.agreeing !== null) for (const item of parts.querySelectorAll(".references li")) {
      const agrees = found.agreeing.includes(item.reference);
      item.classList.add(agrees ? "agrees" : "differs");
      item.prepend(v.el("span", { class: "sign" }, agrees ? "✓ " : "✗ "));
    }
  }

  // the same query in all trials
  function everywhere(run, row, filter) {
    const { rows } = run, benchmark = run.trial(row).benchmark, id = rows.id[row];
    const found = [];
    for (const trial of run.info.trials) {
      if (trial.benchmark !== benchmark) continue;
      const there = run.find(v.keyOf(benchmark, trial.shots, trial.seed, id, rows.occurrence[row]));
      if (there !== undefined) found.push([trial, there]);
    }
    if (found.length < 2) return v.el("span", {});
    const body = found.map(([trial, there]) => [
      there === row ? v.el("strong", {}, String(trial.shots)) : v.el("a", { href: v.addressOf(run, there, filter) }, String(trial.shots)),
      String(trial.seed), rows.failed[there] === null ? v.said(rows.answer[there]) : v.el("em", { class: "failed" }, "no answer"), v.number(rows.score[there]),
    ]);
    return v.section("The same query at other shots", v.table(["shots", "seed", "answer", "score"], body, 3));
  }

  function otherRun(run, row) {
    const other = v.runs.find((one) => one !== run);
    const against = other && v.against(run, other, row);
    if (!against) return v.el("span", {});
    const { rows } = other;
    const [first, second] = v.runs.map((one) => one.info.name);
    return v.section("In the other run", v.el("p", {},
      v.el("a", { href: v.addressOf(other, against.there, { ...v.NO_FILTER, run: String(other.number) }) }, v.said(other.info.name)), ": ",
      v.said(rows.answer[against.there], "given"), `, score ${v.number(rows.score[against.there], 2)}`),
      v.el("p", {}, `from ${first} to ${second}: `, v.el("strong", { class: "word" }, against.word)));
  }

  function exact(detail) {
    const text = typeof detail.prompt === "string" ? detail.prompt : JSON.stringify(detail.prompt, null, 1);
    const fields = Object.entries(detail.fields).map(([name, value]) => [name, v.said(value)]);
    return v.section("Exactly", v.folded(`The prompt as text (rendering ${detail.rendering})`, v.el("pre", { tabindex: "0" }, text)),
      v.folded("The query's record", v.table(["field", "value"], fields, 2)));
  }
})(viewer);
