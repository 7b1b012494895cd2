// Score against shots, with error bars.
"use strict";

(function (v) {
  const WIDTH = 460, HEIGHT = 250, LEFT = 44, BOTTOM = 40, TOP = 12, RIGHT = 16;

  // curves: [{label, shots, means, errors, published, colour}]
  v.curve = (title, curves) => {
    const shots = [...new Set(curves.flatMap((one) => one.shots))].sort((a, b) => a - b);
    const reach = curves.flatMap((one) => one.means.flatMap((mean, i) => [mean - (one.errors[i] || 0), mean + (one.errors[i] || 0)]));
    let [low, high] = [Math.min(0, ...reach), Math.max(...reach)];
    high = high - low < 1e-9 ? low + 1 : high + 0.04 * (high - low);
    const x = (k) => LEFT + ((shots.indexOf(k) + 0.5) * (WIDTH - LEFT - RIGHT)) / shots.length;
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low));
    const drawing = v.svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} against shots`, class: "curve" });
    for (const tick of ticks(low, high)) {
      drawing.append(v.svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }));
      drawing.append(v.svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
    }
    for (const k of shots) drawing.append(v.svg("text", { x: x(k), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, String(k)));
    drawing.append(v.svg("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 2, "text-anchor": "middle", class: "axis" }, "shots"));
    for (const one of [...curves].sort((a, b) => b.published - a.published)) drawing.append(line(one, x, y));
    return v.el("figure", {}, v.el("figcaption", {}, title), drawing, legend(curves));
  };

  function line(one, x, y) {
    const points = one.shots.map((k, i) => [x(k), y(one.means[i])]);
    const group = v.svg("g", { class: one.published ? "published" : `colour-${one.colour}` });
    group.append(v.svg("polyline", { points: points.map((p) => p.join(",")).join(" "), class: "line" }));
    points.forEach(([px, py], i) => {
      const error = one.errors[i];
      if (error) group.append(v.svg("line", { x1: px, x2: px, y1: y(one.means[i] - error), y2: y(one.means[i] + error), class: "error" }));
      const dot = v.svg("circle", { cx: px, cy: py, r: one.published ? 3 : 4 });
      const spread = error === null || error === undefined ? "" : ` ± ${v.number(error)}`;
      dot.append(v.svg("title", {}, `${one.label}: ${one.shots[i]} shots, ${v.number(one.means[i])}${spread}`));
      group.append(dot);
    });
    return group;
  }

  function ticks(low, high) {
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500].find((s) => (high - low) / s <= 6) || 1000;
    const found = [];
    for (let n = Math.ceil(low / step); n * step <= high + 1e-9; n++) found.push(Number((n * step).toFixed(1)));
    return found;
  }

  const legend = (curves) =>
    v.el("ul", { class: "legend" }, curves.map((one) =>
      v.el("li", { class: one.published ? "published" : `colour-${one.colour}` }, v.el("span", { class: "swatch" }), v.said(one.label))));
})(viewer);
