// Search, filter and order the chosen examples. Text of the data only ever becomes text nodes, never markup.
(() => {
  "use strict";
  const examples = JSON.parse(document.getElementById("examples").textContent);
  const byId = (id) => document.getElementById("browse-" + id);
  const form = byId("form"), list = byId("list");
  const PAGE = 20;
  let page = 0, only = null;

  const compare = (key, sign) => (a, b) =>
    (a[key] === null) - (b[key] === null) || sign * (a[key] - b[key]) || a.rank - b.rank;
  const orders = {
    "order of choice": compare("rank", 1),
    "weight, high first": compare("weight", -1),
    "score, high first": compare("score", -1),
    "loss, high first": compare("loss", -1),
    "loss, low first": compare("loss", 1),
    "text, short first": compare("size", 1),
    "text, long first": compare("size", -1),
  };
  for (const example of examples) {
    example.text = example.segments.map((segment) => segment[0]).join("").toLowerCase();
    example.size = example.text.length;
  }

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function fill(select, values, name) {
    for (const value of values) {
      const option = element("option", name(value));
      option.value = String(value);
      select.append(option);
    }
    if (values.length < 2) select.closest("label").hidden = select.id !== "browse-order";
  }

  const differing = (key) => [...new Set(examples.map((example) => example[key]))];
  const number = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString());

  const placeOf = (row) =>
    row.path ? row.path + (row.line === null ? "" : ", line " + row.line) : "row " + row.index;

  function facts(example) {
    const line = element("div", "", "facts");
    line.append(element("h3", "Rank " + example.rank));
    if (example.source) line.append(element("span", example.source));
    if (example.cluster >= 0) line.append(element("span", "cluster " + example.cluster));
    for (const name of ["weight", "score", "loss"]) {
      if (example[name] !== null) line.append(element("span", name + " " + number(example[name])));
    }
    line.append(element("span", placeOf(example)));
    return line;
  }

  function why(example) {
    const list = element("ul", "", "why");
    list.setAttribute("aria-label", "Why it was chosen");
    list.append(...example.reasons.map((reason) => element("li", reason)));
    return list;
  }

  function text(segments) {
    const holder = element("pre");
    holder.dir = "auto";
    for (const [part, response, leftOut] of segments) {
      holder.append(response ? element("mark", part, "response") : element("span", part));
      if (leftOut) holder.append(element("span", leftOut, "left-out"));
    }
    return holder;
  }

  function beside(neighbour) {
    const side = element("div", "", "neighbour");
    const line = element("p", "", "facts");
    line.append(element("strong", "Not chosen"), element("span", "cosine " + neighbour.similarity.toFixed(3)));
    if (neighbour.source) line.append(element("span", neighbour.source));
    line.append(element("span", placeOf(neighbour)));
    side.append(line, text(neighbour.segments));
    return side;
  }

  function card(example) {
    const article = element("article", "", "card");
    article.setAttribute("aria-label", "Chosen example of rank " + example.rank);
    article.append(facts(example));
    if (example.reasons.length) article.append(why(example));
    const sides = element("div", "", example.neighbour ? "sides" : "");
    const own = element("div");
    if (example.neighbour) {
      const line = element("p", "", "facts");
      line.append(element("strong", "Chosen"));
      own.append(line);
    }
    own.append(text(example.segments));
    sides.append(own);
    if (example.neighbour) sides.append(beside(example.neighbour));
    article.append(sides);
    const item = element("li");
    item.append(article);
    return { item, article };
  }

  // Long texts are folded, with a button, once their height on the page is known.
  function fold({ article }) {
    const texts = Array.from(article.querySelectorAll("pre"));
    if (!texts.some((text) => text.scrollHeight >= 300)) return;
    texts.forEach((text) => text.classList.add("folded"));
    const button = element("button", "Show all of it", "more");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const folded = texts.map((text) => text.classList.toggle("folded"))[0];
      button.textContent = folded ? "Show all of it" : "Show less";
      button.setAttribute("aria-expanded", String(!folded));
    });
    article.append(button);
  }

  function show() {
    const wanted = byId("text").value.toLowerCase();
    const source = byId("source").value, cluster = byId("cluster").value;
    const found = only !== null ? examples.filter((example) => example.index === only) : examples.filter((example) =>
      (!source || example.source === source.slice(1)) && (!cluster || String(example.cluster) === cluster) &&
      (!wanted || example.text.includes(wanted) || example.path.toLowerCase().includes(wanted)));
    found.sort(orders[byId("order").value]);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    const cards = found.slice(page * PAGE, (page + 1) * PAGE).map(card);
    list.replaceChildren(...cards.map((made) => made.item));
    list.start = page * PAGE + 1;
    cards.forEach(fold);
    byId("count").textContent = found.length === examples.length
      ? number(examples.length) + " examples" : number(found.length) + " of " + number(examples.length) + " examples";
    byId("page").textContent = "page " + (page + 1) + " of " + pages;
    byId("back").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("pages").hidden = pages === 1;
    byId("all").hidden = only === null;
  }

  function turn(by) {
    page += by;
    show();
    document.getElementById("browse").scrollIntoView();
  }

  fill(byId("source"), differing("source").sort().map((name) => "=" + name), (value) => value.slice(1) || "(no source)");
  fill(byId("cluster"), differing("cluster").sort((a, b) => a - b), (value) => (value < 0 ? "none" : "cluster " + value));
  const usable = Object.keys(orders).filter((name) => {
    const key = { weight: "weight", score: "score", loss: "loss" }[name.split(",")[0]];
    return !key || differing(key).length > 1;
  });
  fill(byId("order"), usable, (value) => value);
  let waiting;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { page = 0; only = null; show(); }, event.target.id === "browse-text" ? 150 : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("all").addEventListener("click", () => { only = null; page = 0; show(); byId("text").focus(); });
  // A point of the map that was selected.
  document.addEventListener("pursuit-row", (event) => {
    if (!examples.some((example) => example.index === event.detail)) return;
    only = event.detail;
    page = 0;
    show();
    document.getElementById("browse").scrollIntoView();
    byId("all").focus({ preventScroll: true });
  });
  byId("back").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  show();
})();
