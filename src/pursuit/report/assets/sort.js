// Tables that are sorted by the heading that is selected: first the way that suits the column, then the other way.
(() => {
  "use strict";
  const collator = new Intl.Collator("en", { numeric: true });

  function compare(a, b) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y;
  }

  function sort(table, column) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const head = heads[column];
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    const way = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((cell) => cell.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.key;
    const rows = Array.from(table.tBodies[0].rows);
    // What is unknown stays last, whichever way.
    rows.sort((a, b) => (key(a) === "" || key(b) === "" ? compare(key(a), key(b)) : sign * compare(key(a), key(b))));
    table.tBodies[0].append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("button.sort").forEach((button, column) =>
      button.addEventListener("click", () => sort(table, column)));
  }
})();
