// What the page knows of the runs: asked of the server, or of the script files of a bundle.
"use strict";

(function (v) {
  const files = document.documentElement.dataset.from === "files";
  const waiting = new Map();
  const COLUMNS = ["trial", "position", "id", "occurrence", "text", "answer", "score", "failed", "kind", "group"];

  v.live = !files;
  v.runs = [];
  v.marks = []; // of each run
  v.kept = []; // in which file
  v.changed = () => {};

  // a script of a bundle hands its data over
  v.receive = (name, data) => {
    const one = waiting.get(name);
    waiting.delete(name);
    if (one) one(data);
  };

  function fromFile(name) {
    return new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = v.el("script", { src: `data/${name}.js` });
      script.addEventListener("error", () => reject(new Error(`data/${name}.js is not there: was the whole folder copied?`)));
      script.addEventListener("load", () => {
        script.remove();
        if (waiting.delete(name)) reject(new Error(`data/${name}.js is damaged`));
      });
      document.head.append(script);
    });
  }

  async function fromServer(path) {
    let answer;
    try {
      answer = await fetch(path);
    } catch {
      throw new Error("flamingo-eval view does not answer any more; start it again, then load this page anew");
    }
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.error);
    return data;
  }

  v.keyOf = (benchmark, shots, seed, id, occurrence) => [benchmark, shots, seed, id, occurrence].join("\u0000");

  class Run {
    constructor(info, number) {
      this.info = info;
      this.number = number;
      this.empty();
    }

    empty() {
      this.rows = Object.fromEntries(COLUMNS.map((name) => [name, []]));
      this.size = 0;
      this._search = [];
      this._index = null;
      this._details = new Map();
    }

    trial(row) {
      return this.info.trials[this.rows.trial[row]];
    }

    key(row) {
      const trial = this.trial(row);
      return v.keyOf(trial.benchmark, trial.shots, trial.seed, this.rows.id[row], this.rows.occurrence[row]);
    }

    // the row of a key, or undefined
    find(key) {
      if (this._index === null) {
        this._index = new Map();
        for (let row = 0; row < this.size; row++) this._index.set(this.key(row), row);
      }
      return this._index.get(key);
    }

    // what a text is looked for in
    search(row) {
      const known = this._search[row];
      if (known !== undefined) return known;
      const rows = this.rows;
      return (this._search[row] = `${rows.id[row]}\n${rows.text[row]}\n${rows.answer[row]}`.toLowerCase());
    }

    add(columns, from) {
      for (const name of COLUMNS) {
        const own = this.rows[name];
        for (let i = from; i < columns[name].length; i++) own.push(columns[name][i]);
      }
      for (let row = this.size; row < this.rows.id.length && this._index !== null; row++) this._index.set(this.key(row), row);
      this.size = this.rows.id.length;
    }

    // brings the rows that are there and not here
    async load() {
      const { chunk, version } = this.info;
      while (this.size < this.info.rows && version === this.info.version) {
        const number = Math.floor(this.size / chunk);
        const have = this.size;
        const columns = await (files ? fromFile(`rows-${this.number}-${number}`) : fromServer(`data/rows/${this.number}/${number}`));
        if (columns.version !== this.info.version || version !== this.info.version || have !== this.size) return;
        this.add(columns, have - number * chunk);
        if (this.size === have) return;
        v.changed();
      }
    }

    async part(kind, row) {
      if (!files) return fromServer(`data/${kind}/${this.number}/${this.rows.trial[row]}/${this.rows.position[row]}`);
      const group = Math.floor(row / this.info.group);
      const name = `${kind}-${this.number}-${group}`;
      if (!this._details.has(name)) this._details.set(name, fromFile(name));
      return (await this._details.get(name))[row % this.info.group];
    }

    detail(row) {
      return this.part("detail", row);
    }

    explain(row) {
      return this.part("explain", row);
    }

    async update(info) {
      if (info.version !== this.info.version) this.empty();
      this.info = info;
      await this.load();
    }
  }

  v.start = async () => {
    const state = await (files ? fromFile("state") : fromServer("data/state"));
    take(state);
    v.runs = state.runs.map((info, i) => new Run(info, i));
    v.changed();
    for (const run of v.runs) await run.load();
  };

  function take(state) {
    v.marks = state.marks;
    v.kept = state.kept;
    v.tell("marks file", state.problems.join(" "));
  }

  const told = (state) => JSON.stringify([state.runs, state.marks, state.problems]);
  let before = "";

  // asks whether there is something new
  v.look = async () => {
    const state = await fromServer("data/state");
    const now = told(state);
    if (now === before && v.runs.every((run) => run.size >= run.info.rows)) return;
    take(state);
    if (!v.runs.length) v.runs = state.runs.map((info, i) => new Run(info, i));
    for (const [i, info] of state.runs.entries()) await v.runs[i].update(info);
    before = now;
    v.changed();
  };

  v.send = async (run, mark) => {
    const answer = await fetch(`marks/${run.number}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(mark),
    });
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.error);
    return data;
  };
})(viewer);
