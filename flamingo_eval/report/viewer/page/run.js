// The page of a run: table, curve, what kinds of queries score what, failures, speed, where the numbers come from.
"use strict";

(function (v) {
  const MOST_REASONS = 50;

  v.runPage = () => {
    const page = v.el("div", {});
    page.append(v.el("h1", {}, v.runs.length > 1 ? "Two runs" : v.said(v.runs[0].info.name)));
    page.append(...v.runs.flatMap(about).filter(Boolean));
    page.append(tables());
    if (v.runs.some((run) => run.info.cells.length)) page.append(curves());
    for (const run of v.runs) page.append(progress(run));
    for (const run of v.runs) page.append(...v.kinds(run));
    page.append(v.distributions());
    for (const run of v.runs) page.append(...v.confusions(run));
    for (const run of v.runs) page.append(failures(run), speed(run), provenance(run));
    return page;
  };

  v.named = (run, title) => (v.runs.length > 1 ? `${title}: ${run.info.name}` : title);

  function about(run) {
    const { info } = run;
    const words = [v.said(info.path), ", checkpoint ", v.said(info.checkpoint)];
    return [
      v.el("p", { class: "about" }, words, info.live && v.el("strong", { class: "live" }, " answering now")),
      info.selection && v.el("p", { class: "warning" }, v.said(`This page has ${info.selection}. The table is of all of them.`)),
    ];
  }

  function tables() {
    const shots = [...new Set(v.runs.flatMap((run) => run.info.cells.map((cell) => cell.shots)))].sort((a, b) => a - b);
    if (!shots.length) {
      const left = v.runs.some((run) => run.info.trials.some((t) => t.answered + t.failed < t.planned));
      const why = left ? "No trial is scored yet: that is done once all of a run's queries are answered." : "No trial has a score.";
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
    const filter = { ...v.NO_FILTER, run: String(run.number), benchmark: cell.benchmark, shots: String(cell.shots) };
    return v.el("a", { href: "#/answers" + v.queryOf(filter) }, cell.text);
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
    return v.section(v.named(run, "Trials"), folded);
  }

  function failures(run) {
    // alike but for names of files: one reason
    const reasons = new Map();
    for (let row = 0; row < run.size; row++) {
      const reason = run.rows.failed[row];
      if (reason === null) continue;
      const kind = reason.replace(/\S*[/\\]\S*/g, "…");
      const known = reasons.get(kind) || { count: 0, first: reason };
      reasons.set(kind, { ...known, count: known.count + 1 });
    }
    if (!reasons.size) return v.el("span", {});
    const total = [...reasons.values()].reduce((sum, one) => sum + one.count, 0);
    const rows = [...reasons.values()].sort((a, b) => b.count - a.count).slice(0, MOST_REASONS).map((one) => [v.said(one.first), String(one.count)]);
    const filter = v.queryOf({ ...v.NO_FILTER, run: String(run.number), state: "failed" });
    return v.section(v.named(run, "Failures"), v.el("p", {}, v.el("a", { href: "#/answers" + filter }, `${v.count(total, "query", "queries")} without an answer`)), v.table(["reason, such as", "queries"], rows, 1));
  }

  function speed(run) {
    const rows = run.info.sessions.map((one) => {
      const { answering, ...parts } = one.seconds;
      const rate = answering ? `${v.number(one.answered / answering)} a second` : "–";
      const listed = Object.entries(parts).map(([name, seconds]) => `${name} ${v.number(seconds)} s`).join(", ");
      return [one.start, one.device, one.precision, one.answered.toLocaleString("en"), rate, listed];
    });
    return v.section(v.named(run, "Speed"), v.table(["began", "device", "precision", "answers", "rate", "of which"], rows, 6));
  }

  const provenance = (run) =>
    v.section(v.named(run, "Where these numbers come from"), v.folded("run.json", v.el("pre", { tabindex: "0" }, run.info.provenance)));
})(viewer);
