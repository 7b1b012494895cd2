// The page of a run: table, curve, what kinds of queries score what, failures, speed, where the numbers come from.
"use strict";

(function (v) {
  const BINS = 20, MOST_CONFUSED = 25;

  v.runPage = () => {
    const page = v.el("div", {});
    page.append(v.el("h1", {}, v.runs.length > 1 ? "Two runs" : v.said(v.runs[0].info.name)));
    for (const run of v.runs) page.append(about(run));
    page.append(tables());
    if (v.runs.some((run) => run.info.cells.length)) page.append(curves());
    for (const run of v.runs) page.append(progress(run));
    for (const run of v.runs) page.append(...kinds(run));
    page.append(distributions());
    for (const run of v.runs) page.append(...confusions(run));
    for (const run of v.runs) page.append(failures(run), speed(run), provenance(run));
    return page;
  };

  const named = (run, title) => (v.runs.length > 1 ? `${title}: ${run.info.name}` : title);

  function about(run) {
    const { info } = run;
    const words = [v.said(info.path), ", checkpoint ", v.said(info.checkpoint)];
    return v.el("p", { class: "about" }, words, info.live && v.el("strong", { class: "live" }, " answering now"));
  }

  function tables() {
    const shots = [...new Set(v.runs.flatMap((run) => run.info.cells.map((cell) => cell.shots)))].sort((a, b) => a - b);
    if (!shots.length) {
      const why = "No trial is scored yet: that is done once all of a run's queries are answered.";
      return v.section("Scores", v.el("p", {}, why), v.runs.map(notes));
    }
    const rows = [];
    for (const run of v.runs) {
      const groups = new Map();
      for (const cell of run.info.cells) {
        const key = [cell.benchmark, cell.split, cell.metric, cell.protocol, cell.selector].join("\u0000");
        groups.set(key, { ...groups.get(key), [cell.shots]: cell, first: cell });
      }
      for (const group of groups.values()) {
        const { first } = group;
        rows.push([
          ...(v.runs.length > 1 ? [v.said(run.info.name)] : []), first.benchmark, first.split, first.metric,
          ...shots.map((k) => (group[k] ? link(run, group[k]) : "")),
        ]);
      }
    }
    const head = [...(v.runs.length > 1 ? ["run"] : []), "benchmark", "split", "metric", ...shots.map((k) => v.count(k, "shot"))];
    return v.section("Scores", v.table(head, rows, v.runs.length > 1 ? 4 : 3), v.runs.map(notes));
  }

  // under the table: a line, what the numbers can't be read without, and the rest folded
  function notes(run) {
    const { caption, warnings, notes: more } = run.info;
    const name = v.runs.length > 1 ? `${run.info.name}: ` : "";
    const items = v.el("ul", {}, more.map((line) => v.el("li", {}, v.said(line))));
    return [
      caption && v.el("p", { class: "note" }, v.said(name + caption)),
      warnings.map((line) => v.el("p", { class: "warning" }, v.said(name + line))),
      more.length > 0 && v.folded(name + v.count(more.length, "note"), items),
    ];
  }

  function link(run, cell) {
    const spread = cell.std === null ? "" : ` (${v.number(cell.std)})`;
    const filter = { ...v.NO_FILTER, run: String(run.number), benchmark: cell.benchmark, shots: String(cell.shots) };
    return v.el("a", { href: "#/answers" + v.queryOf(filter) }, v.number(cell.mean) + spread + (cell.complete ? "" : " *"));
  }

  function curves() {
    const benchmarks = [...new Set(v.runs.flatMap((run) => run.info.cells.map((cell) => cell.benchmark)))];
    const figures = benchmarks.map((benchmark) => {
      const own = v.runs.map((run, colour) => {
        const cells = run.info.cells.filter((cell) => cell.benchmark === benchmark).sort((a, b) => a.shots - b.shots);
        return { label: run.info.name, shots: cells.map((c) => c.shots), means: cells.map((c) => c.mean), errors: cells.map((c) => c.std), published: false, colour };
      });
      const seen = new Set();
      const others = v.runs.flatMap((run) => run.info.published).filter((one) => one.benchmark === benchmark && !seen.has(one.label) && seen.add(one.label))
        .map((one) => ({ label: `published: ${one.label}`, shots: one.shots, means: one.means, errors: one.deviations, published: true }));
      const metric = v.runs.flatMap((run) => run.info.cells).find((cell) => cell.benchmark === benchmark).metric;
      return v.curve(`${benchmark}, ${metric}`, [...own.filter((one) => one.shots.length), ...others]);
    });
    return v.section("Score against shots", v.el("p", { class: "note" }, "Bars: standard deviation over trials."), v.el("div", { class: "figures" }, figures));
  }

  function progress(run) {
    const rows = run.info.trials.map((t) => [
      t.benchmark, String(t.shots), String(t.seed), v.bar(t.planned ? t.answered / t.planned : 0),
      `${t.answered.toLocaleString("en")} of ${t.planned.toLocaleString("en")}`, t.failed ? String(t.failed) : "", v.number(t.value, 2),
    ]);
    const [answered, planned] = ["answered", "planned"].map((name) => run.info.trials.reduce((sum, t) => sum + t[name], 0));
    const title = `${v.count(run.info.trials.length, "trial")}, ${answered.toLocaleString("en")} of ${planned.toLocaleString("en")} queries answered`;
    const folded = v.folded(title, v.table(["benchmark", "shots", "seed", "", "answered", "failed", "score"], rows, 1));
    folded.open = answered < planned;
    return v.section(named(run, "Trials"), folded);
  }

  function kinds(run) {
    const found = [];
    for (const cell of run.info.cells) for (const [kind, values] of Object.entries(cell.groups)) found.push({ cell, kind, values });
    const titles = [...new Set(found.map((one) => `${one.cell.benchmark} by ${one.kind.replace("_", " ")}`))];
    return titles.map((title) => {
      const members = found.filter((one) => `${one.cell.benchmark} by ${one.kind.replace("_", " ")}` === title).sort((a, b) => a.cell.shots - b.cell.shots);
      const names = [...new Set(members.flatMap((one) => Object.keys(one.values)))];
      const head = ["", ...members.map((one) => v.count(one.cell.shots, "shot"))];
      const rows = names.map((name) => [
        members[0].kind === "answer_type" ? kindLink(run, members[0].cell.benchmark, name) : v.said(name),
        ...members.map((one) => v.number(one.values[name])),
      ]);
      const table = v.table(head, rows, 1);
      return v.section(named(run, title), names.length > 8 ? v.folded(v.count(names.length, "kind"), table) : table);
    });
  }

  const kindLink = (run, benchmark, kind) =>
    v.el("a", { href: "#/answers" + v.queryOf({ ...v.NO_FILTER, run: String(run.number), benchmark, kind }) }, v.said(kind));

  function distributions() {
    const figures = [];
    for (const run of v.runs) {
      const groups = new Map();
      for (let row = 0; row < run.size; row++) {
        const score = run.rows.score[row];
        if (score === null) continue;
        const trial = run.trial(row);
        const key = `${trial.benchmark}\u0000${trial.shots}`;
        if (!groups.has(key)) groups.set(key, { benchmark: trial.benchmark, shots: trial.shots, scores: [] });
        groups.get(key).scores.push(score);
      }
      for (const group of groups.values()) figures.push(histogram(run, group));
    }
    return figures.length ? v.section("Distribution of scores", v.el("div", { class: "histograms" }, figures)) : v.el("span", {});
  }

  function histogram(run, { benchmark, shots, scores }) {
    const top = scores.reduce((most, score) => Math.max(most, score), 1e-9);
    const bins = new Array(BINS).fill(0);
    for (const score of scores) bins[Math.max(0, Math.min(BINS - 1, Math.floor((BINS * score) / top)))]++;
    const most = Math.max(...bins);
    const title = `${named(run, benchmark)}, ${v.count(shots, "shot")}`;
    const drawing = v.svg("svg", { viewBox: "0 0 200 70", role: "img", "aria-label": `${title}: how many answers have which score` });
    bins.forEach((count, i) => {
      const height = (48 * count) / most;
      const bar = v.svg("rect", { x: i * 10 + 0.5, y: 50 - height, width: 9, height, class: `fill colour-${run.number}` });
      bar.append(v.svg("title", {}, `${v.number((i * top) / BINS)} to ${v.number(((i + 1) * top) / BINS)}: ${v.count(count, "answer")}`));
      drawing.append(bar);
    });
    drawing.append(v.svg("text", { x: 0, y: 64 }, "0"), v.svg("text", { x: 200, y: 64, "text-anchor": "end" }, v.number(top)));
    return v.el("figure", {}, v.el("figcaption", {}, title), drawing);
  }

  function confusions(run) {
    return run.info.ranking.map((benchmark) => {
      const shots = [...new Set(run.info.trials.filter((t) => t.benchmark === benchmark).map((t) => t.shots))].sort((a, b) => a - b);
      return v.section(named(run, `${benchmark}: right name and answer`), v.el("div", { class: "figures" }, shots.map((k) => confusion(run, benchmark, k))));
    });
  }

  function confusion(run, benchmark, shots) {
    const counts = new Map(), names = new Set();
    for (let row = 0; row < run.size; row++) {
      const trial = run.trial(row);
      if (trial.benchmark !== benchmark || trial.shots !== shots || run.rows.failed[row] !== null) continue;
      const [right, answer] = [run.rows.kind[row], run.rows.answer[row]];
      names.add(right).add(answer);
      const key = `${right}\u0000${answer}`;
      counts.set(key, (counts.get(key) || 0) + 1);
    }
    const title = v.el("h3", {}, v.count(shots, "shot"));
    if (names.size <= 8) {
      const order = [...names].sort();
      const rows = order.map((right) => [v.said(right), ...order.map((answer) => String(counts.get(`${right}\u0000${answer}`) || 0))]);
      return v.el("div", {}, title, v.table(["right \\ answer", ...order], rows, 1));
    }
    const wrong = [...counts].filter(([key]) => { const [a, b] = key.split("\u0000"); return a !== b; }).sort((a, b) => b[1] - a[1]).slice(0, MOST_CONFUSED);
    const rows = wrong.map(([key, count]) => [...key.split("\u0000").map((name) => v.said(name)), String(count)]);
    return v.el("div", {}, title, v.table(["right", "answer", "times"], rows, 2));
  }

  function failures(run) {
    const reasons = new Map();
    for (let row = 0; row < run.size; row++) {
      const reason = run.rows.failed[row];
      if (reason !== null) reasons.set(reason, (reasons.get(reason) || 0) + 1);
    }
    if (!reasons.size) return v.el("span", {});
    const total = [...reasons.values()].reduce((a, b) => a + b, 0);
    const rows = [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 50).map(([reason, count]) => [v.said(reason), String(count)]);
    const filter = v.queryOf({ ...v.NO_FILTER, run: String(run.number), state: "failed" });
    return v.section(named(run, "Failures"), v.el("p", {}, v.el("a", { href: "#/answers" + filter }, `${v.count(total, "query", "queries")} without an answer`)), v.table(["reason", "queries"], rows, 1));
  }

  function speed(run) {
    const rows = run.info.sessions.map((one) => {
      const { answering, ...parts } = one.seconds;
      const rate = answering ? `${v.number(one.answered / answering)} a second` : "–";
      const listed = Object.entries(parts).map(([name, seconds]) => `${name} ${v.number(seconds)} s`).join(", ");
      return [one.start, one.device, one.precision, one.answered.toLocaleString("en"), rate, listed];
    });
    return v.section(named(run, "Speed"), v.table(["began", "device", "precision", "answers", "rate", "of which"], rows, 6));
  }

  const provenance = (run) =>
    v.section(named(run, "Where these numbers come from"), v.folded("run.json", v.el("pre", { tabindex: "0" }, run.info.provenance)));
})(viewer);
