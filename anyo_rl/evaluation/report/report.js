"use strict";
// The browser of paths. Text from the data goes in by textContent only, so that no title can become mark-up.
(() => {
  const source = document.getElementById("paths-data");
  if (!source) return;
  const { before, after, examples } = JSON.parse(source.textContent);
  const byId = (id) => document.getElementById(id);
  const [list, detail, search, stage, change, count] = ["list", "detail", "search", "stage", "change", "count"].map(byId);
  const RECENT = 10;
  const WHY = { gain: "one of the biggest gains", loss: "one of the biggest losses", sample: "from the random sample" };

  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const first = (example, policy) => example.paths.find((path) => path.policy === policy);
  const rankText = (path) => (path && path.rank !== null ? String(path.rank) : "–");
  const number = (value) => (typeof value === "number" ? value.toFixed(3) : "–");

  for (const example of examples) {
    const [a, b] = [first(example, before), first(example, after)];
    if (a && b && a.rank !== null && b.rank !== null)
      example.change = b.rank < a.rank ? "better" : b.rank > a.rank ? "worse" : "same";
    const words = [example.target, example.user, ...example.history];
    for (const path of example.paths) words.push(path.item || "", path.completion || "", ...path.steps);
    example.words = words.join("\n").toLowerCase();
  }
  const policies = [...new Set(examples.flatMap((example) => example.paths.map((path) => path.policy)))];
  policies.sort((a, b) => (b === before) - (a === before) || (a === after) - (b === after) || a.localeCompare(b));
  for (const policy of ["", ...policies]) {
    const option = make("option", policy || "all");
    option.value = policy;
    stage.append(option);
  }

  let shown = [];
  let selected = 0;

  function row(example, place) {
    const item = make("li");
    item.id = `example-${place}`;
    item.setAttribute("role", "option");
    item.append(make("span", example.target, "title"));
    const ranks = make("span", null, "ranks");
    const visible = stage.value ? [stage.value] : policies;
    visible.forEach((policy, position) => {
      if (position) ranks.append(" → ");
      ranks.append(make("span", rankText(first(example, policy)), policy === after ? example.change : ""));
    });
    item.append(ranks);
    item.addEventListener("click", () => { select(place); list.focus({ preventScroll: true }); });
    return item;
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = examples.filter((example) =>
      (!stage.value || first(example, stage.value)) &&
      (!change.value || example.change === change.value) &&
      words.every((word) => example.words.includes(word)));
    list.replaceChildren(...shown.map(row));
    count.textContent = `${shown.length} of ${examples.length} examples`;
    if (!shown.length) list.append(make("li", "Nothing matches.", "none"));
    select(0);
  }

  function select(place) {
    selected = Math.max(0, Math.min(place, shown.length - 1));
    [...list.children].forEach((item, position) => item.setAttribute("aria-selected", String(position === selected && shown.length > 0)));
    if (!shown.length) {
      list.removeAttribute("aria-activedescendant");
      detail.replaceChildren(make("p", "No example to show.", "quiet"));
      return;
    }
    list.setAttribute("aria-activedescendant", `example-${selected}`);
    const item = list.children[selected];
    // Scrolls the list only: scrollIntoView would move the page when it opens.
    if (item.offsetTop - list.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop - list.offsetTop;
    const below = item.offsetTop - list.offsetTop + item.offsetHeight - list.clientHeight;
    if (below > list.scrollTop) list.scrollTop = below;
    show(shown[selected]);
  }

  function show(example) {
    const parts = [make("p", `Target for user ${example.user} · ${WHY[example.why] || ""}`, "kind"), make("h3", example.target)];
    const recent = example.history.slice(-RECENT);
    const older = example.history.slice(0, -RECENT);
    parts.push(make("h4", example.history.length ? "History, newest last" : "No history"));
    if (older.length) {
      const box = make("details");
      box.append(make("summary", `${older.length + example.earlier} earlier`));
      if (example.earlier) box.append(make("p", `The oldest ${example.earlier} are not in this report.`, "quiet"));
      box.append(titles(older, example.earlier + 1));
      parts.push(box);
    }
    parts.push(titles(recent, example.earlier + older.length + 1));
    const paths = example.paths.filter((path) => !stage.value || path.policy === stage.value);
    paths.sort((a, b) => policies.indexOf(a.policy) - policies.indexOf(b.policy)); // stable: samples stay in order
    parts.push(...paths.map((path) => pathCard(path)));
    detail.replaceChildren(...parts);
    detail.scrollTop = 0;
  }

  function titles(names, start) {
    const history = make("ol", null, "history");
    history.start = start;
    history.append(...names.map((title) => make("li", title)));
    return history;
  }

  function pathCard(path) {
    const card = make("section", null, path.policy === after ? "path after" : "path");
    const header = make("header");
    header.append(make("span", path.policy, "policy"));
    header.append(make("span", path.rank === null ? "no rank" : `target at rank ${path.rank.toLocaleString("en")}`, "rank"));
    const aside = [path.sample, path.ranker, path.cap && `cap ${path.cap}`, path.finish].filter(Boolean);
    header.append(make("span", aside.join(" · "), "aside"));
    card.append(header);
    if (path.steps.length) {
      const steps = make("ol");
      path.steps.forEach((text, place) => {
        const step = make("li", text);
        const values = path.values || [];
        // Step values are V_0 … V_T; with one value a step, there is no V_0.
        const value = values[values.length > path.steps.length ? place + 1 : place];
        if (typeof value === "number") step.append(make("span", `value ${number(value)}`, "step-value"));
        steps.append(step);
      });
      card.append(steps);
    } else {
      card.append(make("p", path.completion ? `No steps. Written: ${path.completion}` : "No reasoning.", "quiet"));
    }
    const answer = make("p", "→ ", "answer");
    answer.append(path.item === null ? make("span", "no item", "quiet") : make("b", path.item));
    if (path.hit) answer.append(make("span", " ✓ the target", "hit"));
    card.append(answer);
    const names = Object.keys(path.rewards);
    if (names.length) {
      const rewards = make("div", null, "rewards");
      rewards.append(...names.map((name) => make("span", `${name} ${number(path.rewards[name])}`)));
      card.append(rewards);
    }
    if (path.log_probs.length) card.append(tokens(path));
    return card;
  }

  function tokens(path) {
    const known = path.log_probs.filter((value) => typeof value === "number");
    const mean = known.reduce((sum, value) => sum + value, 0) / Math.max(1, known.length);
    const box = make("details");
    box.append(make("summary", `Tokens: ${path.log_probs.length}, mean log-prob ${mean.toFixed(2)}`));
    const line = make("p", null, "tokens");
    path.log_probs.forEach((value, place) => {
      const token = make("span", path.tokens[place] ?? "▪");
      const doubt = typeof value === "number" ? 1 - Math.exp(value) : 0;
      token.style.setProperty("--doubt", doubt.toFixed(3));
      token.title = typeof value === "number" ? `log-prob ${value.toFixed(3)}` : "no log-prob";
      line.append(token);
    });
    box.append(line);
    return box;
  }

  search.addEventListener("input", filter);
  stage.addEventListener("change", filter);
  change.addEventListener("change", filter);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing) {
      if (event.key === "Escape") { event.target.blur(); list.focus({ preventScroll: true }); }
      return;
    }
    const inList = document.activeElement === list;
    const moves = { j: 1, k: -1, ...(inList && { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }) };
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if (moves[event.key]) { event.preventDefault(); select(selected + moves[event.key]); }
  });
  byId("browser").hidden = false;
  filter();
})();
