// What kinds of queries score what: by type, by class, as distributions, and which names are taken for which.
"use strict";

(function (v) {
  const BINS = 20, MOST_CONFUSED = 25;

  v.kinds = (run) => [...groups(run), ...run.info.ranking.map((benchmark) => classes(run, benchmark))];

  // by answer type and question type, as they were scored
  function groups(run) {
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
      return v.section(v.named(run, title), names.length > 8 ? v.folded(v.count(names.length, "kind"), table) : table);
    });
  }

  const kindLink = (run, benchmark, kind) =>
    v.el("a", { href: "#/answers" + v.queryOf({ ...v.NO_FILTER, run: String(run.number), benchmark, kind }) }, v.said(kind));

  // for each class name how often it was the answer where it was right
  function classes(run, benchmark) {
    const shots = [...new Set(run.info.trials.filter((t) => t.benchmark === benchmark).map((t) => t.shots))].sort((a, b) => a - b);
    const names = new Map();
    for (let row = 0; row < run.size; row++) {
      const trial = run.trial(row), right = run.rows.kind[row];
      if (trial.benchmark !== benchmark || !right || run.rows.failed[row] !== null) continue;
      if (!names.has(right)) names.set(right, new Map());
      const [hits, all] = names.get(right).get(trial.shots) || [0, 0];
      names.get(right).set(trial.shots, [hits + (run.rows.answer[row] === right), all + 1]);
    }
    if (!names.size) return v.el("span", {});
    const share = (found) => (found ? `${v.number((100 * found[0]) / found[1])} of ${found[1]}` : "");
    const rows = [...names].sort((a, b) => (a[0] < b[0] ? -1 : 1)).map(([name, found]) => [kindLink(run, benchmark, name), ...shots.map((k) => share(found.get(k)))]);
    const table = v.table(["right name", ...shots.map((k) => v.count(k, "shot"))], rows, 1);
    return v.section(v.named(run, `${benchmark} by class: answered right, %`), rows.length > 8 ? v.folded(v.count(rows.length, "class", "classes"), table) : table);
  }

  v.distributions = () => {
    const found = [];
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
      found.push(...[...groups.values()].map((group) => ({ run, ...group })));
    }
    // the same scale for all of a benchmark's
    const tops = new Map();
    for (const one of found) tops.set(one.benchmark, one.scores.reduce((most, score) => Math.max(most, score), tops.get(one.benchmark) || 1e-9));
    const figures = found.map((one) => histogram(one, tops.get(one.benchmark)));
    return figures.length ? v.section("Distribution of scores", v.el("div", { class: "histograms" }, figures)) : v.el("span", {});
  };

  function histogram({ run, benchmark, shots, scores }, top) {
    const bins = new Array(BINS).fill(0);
    for (const score of scores) bins[Math.max(0, Math.min(BINS - 1, Math.floor((BINS * score) / top)))]++;
    const most = Math.max(...bins);
    const title = `${v.named(run, benchmark)}, ${v.count(shots, "shot")}`;
    const drawing = v.svg("svg", { viewBox: "0 0 200 72", role: "img", "aria-label": `${title}: how many answers have which score` });
    bins.forEach((count, i) => {
      const height = (48 * count) / most;
      const bar = v.svg("rect", { x: i * 10 + 0.5, y: 50 - height, width: 9, height, class: `fill colour-${run.number}` });
      bar.append(v.svg("title", {}, `${v.number((i * top) / BINS)} to ${v.number(((i + 1) * top) / BINS)}: ${v.count(count, "answer")}`));
      drawing.append(bar);
    });
    drawing.append(v.svg("text", { x: 0, y: 66 }, "0"), v.svg("text", { x: 200, y: 66, "text-anchor": "end" }, v.number(top)));
    return v.el("figure", {}, v.el("figcaption", {}, title), drawing);
  }

  v.confusions = (run) =>
    run.info.ranking.filter((benchmark) => isKnown(run, benchmark)).map((benchmark) => {
      const shots = [...new Set(run.info.trials.filter((t) => t.benchmark === benchmark).map((t) => t.shots))].sort((a, b) => a - b);
      return v.section(v.named(run, `${benchmark}: right name and answer`), v.el("div", { class: "figures" }, shots.map((k) => confusion(run, benchmark, k))));
    });

  // whether the right names are public
  function isKnown(run, benchmark) {
    for (let row = 0; row < run.size; row++) if (run.rows.kind[row] && run.trial(row).benchmark === benchmark) return true;
    return false;
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
    if (!wrong.length) return v.el("div", {}, title, v.el("p", {}, "None was wrong."));
    const rows = wrong.map(([key, count]) => [...key.split("\u0000").map((name) => v.said(name)), String(count)]);
    return v.el("div", {}, title, v.table(["right", "answer", "times"], rows, 2));
  }
})(viewer);
