// Addresses, keys, and asking for news.
"use strict";

(function (v) {
  const EVERY = 2000; // milliseconds between questions for news
  const PAGES = ["run", "answers", "answer", "marks"];
  let place = null;

  function parsed() {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    let parts;
    try {
      parts = path.split("/").map((part) => decodeURIComponent(part));
    } catch {
      return { page: "wrong", address: [], filter: v.NO_FILTER }; // not of this page's making
    }
    const page = parts[0] || "run";
    return { page: PAGES.includes(page) ? page : "wrong", address: parts.slice(1), filter: v.filterFrom(query || "") };
  }

  // `replace`: the same page, with another filter
  v.go = (hash, replace) => {
    if (replace) history.replaceState(null, "", hash);
    else history.pushState(null, "", hash);
    if (replace && place.page === "answers") {
      place = parsed();
      v.refreshList(place.filter);
    } else arrive();
  };

  const made = ({ page, address, filter }, last) =>
    page === "answers" ? v.listPage(filter, last)
    : page === "answer" ? v.answerPage(address, filter)
    : page === "marks" ? v.marksPage()
    : page === "run" ? v.runPage()
    : v.el("p", {}, "There is no such page.");

  function header(page) {
    const link = (name, href, text) => v.el("a", { href, "aria-current": page === name ? "page" : null }, text);
    v.redraw(document.getElementById("top"),
      v.el("nav", { "aria-label": "Pages" }, v.el("span", { class: "name" }, "flamingo-eval"),
        link("run", "#/", v.runs.length > 1 ? "Runs" : "Run"), link("answers", "#/answers", "Answers"), link("marks", "#/marks", "Marks")),
      v.el("button", { class: "help", onclick: help, title: "Keys" }, "?"));
  }

  // draws the page of the address
  function arrive() {
    const last = place !== null && place.page === "answer" ? place.hash : null;
    place = { ...parsed(), hash: location.hash };
    header(place.page);
    scrollTo(0, 0);
    document.getElementById("main").replaceChildren(made(place, last));
    document.title = place.page === "answer" ? `${v.visible(place.address[4] || "")} · flamingo-eval` : "flamingo-eval";
  }

  // draws again what has changed, and leaves the rest as it is
  v.changed = () => {
    if (place === null) return;
    const main = document.getElementById("main");
    if (place.page === "answers") v.refreshList(place.filter);
    else if (place.page === "answer") answerChanged(main);
    else v.redraw(main, made(place));
  };

  function answerChanged(main) {
    const shown = main.querySelector("article.one");
    const [number, benchmark, shots, seed, id, occurrence] = place.address;
    const run = v.runs[Number(number)];
    const row = run && run.find(v.keyOf(benchmark, shots, seed, id, occurrence));
    if (shown !== null && row !== undefined && shown.dataset.of === v.stateOf(run, row)) return;
    if (shown !== null && row === undefined && run && run.size < run.info.rows) return; // it is on its way
    if (main.contains(document.activeElement) && document.activeElement.name === "note") return; // somebody is writing
    v.redraw(main, made(place));
  }

  function help() {
    const keys = [["j, →", "next answer"], ["k, ←", "previous answer"], ["Enter", "open"], ["/", "look for a text"], ["Esc", "back to the answers"], ["?", "this list"]];
    const box = v.el("dialog", {}, v.el("h2", {}, "Keys"), v.table(["key", ""], keys, 2), v.el("form", { method: "dialog" }, v.el("button", { autofocus: true }, "Close")));
    box.addEventListener("close", () => box.remove());
    document.body.append(box);
    box.showModal();
  }

  function step(by) {
    if (place.page === "answer") {
      const link = document.querySelector(by > 0 ? 'a[rel="next"]' : 'a[rel="prev"]');
      if (link) v.go(link.getAttribute("href"));
      return;
    }
    const links = [...document.querySelectorAll("table.answers td.id a")];
    const at = links.indexOf(document.activeElement);
    const next = links[at < 0 ? 0 : Math.max(0, Math.min(links.length - 1, at + by))];
    if (next) next.focus();
  }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, select, textarea, dialog");
    if (event.ctrlKey || event.metaKey || event.altKey || place === null) return;
    if (event.key === "Escape" && typing) { event.target.blur(); return; }
    if (typing) return;
    const scrolls = event.target.closest && event.target.closest(".scroll, pre");
    if (event.key === "j" || (event.key === "ArrowRight" && !scrolls)) step(1);
    else if (event.key === "k" || (event.key === "ArrowLeft" && !scrolls)) step(-1);
    else if (event.key === "Escape" && place.page === "answer") v.go(document.querySelector('a[rel="up"]')?.getAttribute("href") || "#/answers");
    else if (event.key === "/" && document.querySelector('input[name="text"]')) document.querySelector('input[name="text"]').focus();
    else if (event.key === "?") help();
    else return;
    event.preventDefault();
  });

  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // its address would be taken for a page's
    document.getElementById("main").focus();
  });

  addEventListener("hashchange", () => arrive());

  async function news() {
    try {
      if (!document.hidden) await v.look();
      v.tell("server", "");
    } catch (error) {
      v.tell("server", error.message);
    }
    setTimeout(news, EVERY);
  }

  async function begin() {
    const draw = v.changed;
    v.changed = () => {
      v.changed = draw;
      arrive();
    };
    try {
      await v.start();
    } catch (error) {
      if (place === null) document.getElementById("main").replaceChildren(v.el("p", { class: "failed" }, error.message));
      v.tell("server", error.message);
    }
    if (v.live) setTimeout(news, EVERY);
  }

  begin();
})(viewer);
