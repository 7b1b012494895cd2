// Addresses, keys, and asking for news.
"use strict";

(function (v) {
  const EVERY = 2000; // milliseconds between questions for news
  let place = null;

  function parsed() {
    const [path, query] = location.hash.replace(/^#/, "").split("?");
    const parts = path.split("/").filter(Boolean).map((part) => decodeURIComponent(part));
    return { page: parts[0] || "run", address: parts.slice(1), filter: v.filterFrom(query || "") };
  }

  v.go = (hash, replace) => {
    if (replace) {
      history.replaceState(null, "", hash || "#/");
      arrive(true);
    } else location.hash = hash;
  };

  function header(page) {
    const link = (name, href, text) => v.el("a", { href, "aria-current": page === name ? "page" : null }, text);
    document.getElementById("top").replaceChildren(
      v.el("nav", { "aria-label": "Pages" }, v.el("span", { class: "name" }, "flamingo-eval"),
        link("run", "#/", v.runs.length > 1 ? "Runs" : "Run"), link("answers", "#/answers", "Answers"), link("marks", "#/marks", "Marks")),
      v.el("button", { class: "help", onclick: help, title: "Keys" }, "?"));
  }

  // draws the page of the address; `same` while a form on it is in use
  function arrive(same) {
    const { page, address, filter } = parsed();
    const main = document.getElementById("main");
    place = { page, address, filter };
    if (same && page === "answers" && document.getElementById("found")) {
      v.refreshList(filter);
      return;
    }
    header(page);
    const made = page === "answers" ? v.listPage(filter, 0) : page === "answer" ? v.answerPage(address, filter) : page === "marks" ? v.marksPage() : v.runPage();
    main.replaceChildren(made);
    document.title = page === "answer" ? `${v.visible(address[4] || "")} · flamingo-eval` : "flamingo-eval";
    if (!same) scrollTo(0, 0);
  }

  v.changed = () => {
    if (place === null) return;
    if (place.page === "answers") v.refreshList(place.filter);
    else if (place.page === "answer" ? document.querySelector("article.one") === null : place.page === "run" && !folded()) arrive(true);
  };

  // somebody has opened a part of the page: it is not drawn anew under their hands
  const folded = () => document.querySelector("main details[open]:not(:has(.bar))") !== null || document.activeElement?.closest?.("main a, main button, main pre");

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
      if (link) link.click();
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
    else if (event.key === "Escape" && place.page === "answer") v.go("#/answers" + v.queryOf(place.filter));
    else if (event.key === "/" && document.querySelector('input[name="text"]')) document.querySelector('input[name="text"]').focus();
    else if (event.key === "?") help();
    else return;
    event.preventDefault();
  });

  addEventListener("hashchange", () => arrive(false));

  async function news() {
    try {
      if (!document.hidden) await v.look();
      v.tell("");
    } catch (error) {
      v.tell(error.message);
    }
    setTimeout(news, EVERY);
  }

  async function begin() {
    const drawn = v.changed;
    v.changed = () => {
      arrive(false);
      v.changed = drawn;
    };
    try {
      await v.start();
      if (v.live) setTimeout(news, EVERY);
    } catch (error) {
      document.getElementById("main").replaceChildren(v.el("p", { class: "failed" }, error.message));
    }
  }

  begin();
})(viewer);
