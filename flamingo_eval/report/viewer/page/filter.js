// Which answers are shown, in what order; pure.
"use strict";

(function (v) {
  const SAME = 1e-9;

  v.NO_FILTER = { run: "0", benchmark: "", shots: "", seed: "", kind: "", min: "", max: "", state: "", change: "", text: "", sort: "", from: "0" };

  v.filterFrom = (query) => {
    const given = new URLSearchParams(query);
    return Object.fromEntries(Object.entries(v.NO_FILTER).map(([name, none]) => [name, given.get(name) || none]));
  };

  v.queryOf = (filter) => {
    const kept = Object.entries(filter).filter(([name, value]) => value !== v.NO_FILTER[name]);
    return kept.length ? "?" + new URLSearchParams(kept) : "";
  };

  // what has become of a row from the first run to the second: its row in the other one, difference of scores, a word
  v.against = (run, other, row) => {
    const there = other ? other.find(run.key(row)) : undefined;
    if (there === undefined) return null;
    const [own, others] = [run.rows.score[row], other.rows.score[there]];
    const [a, b] = run.number < other.number ? [own, others] : [others, own];
    const difference = a === null || b === null ? null : b - a;
    const word =
      difference !== null && difference < -SAME ? "broke"
      : difference !== null && difference > SAME ? "fixed"
      : run.rows.answer[row] !== other.rows.answer[there] ? "changed"
      : "same";
    return { there, difference, word };
  };

  // numbers of the rows that pass, in order
  v.select = (run, other, filter) => {
    const trials = run.info.trials.map(
      (trial) =>
        (!filter.benchmark || trial.benchmark === filter.benchmark) &&
        (!filter.shots || String(trial.shots) === filter.shots) &&
        (!filter.seed || String(trial.seed) === filter.seed)
    );
    const { rows } = run;
    const [min, max] = [bound(filter.min, -Infinity), bound(filter.max, Infinity)];
    const bounded = min > -Infinity || max < Infinity;
    const text = filter.text.toLowerCase();
    const found = [];
    for (let row = 0; row < run.size; row++) {
      if (!trials[rows.trial[row]]) continue;
      if (filter.kind && rows.kind[row] !== filter.kind) continue;
      if (filter.state && (rows.failed[row] !== null) !== (filter.state === "failed")) continue;
      const score = rows.score[row];
      if (bounded && (score === null || score < min || score > max)) continue;
      if (text && !run.search(row).includes(text)) continue;
      if (filter.change && !isChanged(v.against(run, other, row), filter.change)) continue;
      found.push(row);
    }
    return sorted(found, run, other, filter.sort);
  };

  const bound = (text, none) => (text.trim() === "" || Number.isNaN(Number(text)) ? none : Number(text));

  const isChanged = (against, wanted) =>
    against !== null && (wanted === "any" ? against.word !== "same" : against.word === wanted);

  function sorted(found, run, other, sort) {
    if (!sort) return found;
    const [what, way] = sort.split("-");
    const values = new Map(
      found.map((row) => [row, what === "score" ? run.rows.score[row] : v.against(run, other, row)?.difference ?? null])
    );
    const sign = way === "up" ? 1 : -1;
    // what has no number comes last, equals stay in order
    return found.sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * (x - y) || a - b;
    });
  }
})(viewer);
