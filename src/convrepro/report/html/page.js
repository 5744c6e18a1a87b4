"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const form = document.getElementById("filters");
  const search = document.getElementById("search");
  const rows = all("tr[data-verdicts]");
  const sections = all("section.table");
  const texts = new Map(rows.map((row) => {
    const section = row.closest("section");
    const heading = section.querySelector("h2").textContent + " " + section.querySelector(".origin").textContent;
    return [row, (row.textContent + " " + heading).toLowerCase()];
  }));

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = all("input:checked", form).map((box) => box.value);
    for (const row of rows) {
      const verdicts = row.dataset.verdicts.split("|");
      const fits = !wanted.length || wanted.some((verdict) => verdicts.includes(verdict));
      row.hidden = !(fits && words.every((word) => texts.get(row).includes(word)));
    }
    for (const table of all("section.table table.sortable")) {
      table.parentElement.hidden = !table.querySelector("tr[data-verdicts]:not([hidden])");
    }
    for (const section of sections) {
      section.hidden = !section.querySelector("tr[data-verdicts]:not([hidden])");
      document.querySelector(`tr[data-section="${section.id}"]`).hidden = section.hidden;
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("shown").textContent = `${shown} of ${rows.length} rows and claims`;
  }

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent.trim();
  };
  const text = new Intl.Collator("en", { numeric: true });

  function compare(a, b) {
    const numbers = a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
    return numbers ? a - b : text.compare(a, b);
  }

  function sort(button) {
    const header = button.closest("th");
    const table = header.closest("table");
    const body = table.tBodies[0];
    body.original ??= [...body.rows];
    const next = { null: "ascending", ascending: "descending", descending: null }[header.getAttribute("aria-sort")];
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    let order = body.original;
    if (next) {
      header.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      order = [...order].sort((one, other) => {
        const [a, b] = [one, other].map((row) => value(row, header.cellIndex));
        return (a === "") - (b === "") || sign * compare(a, b);
      });
    }
    body.append(...order);
  }

  function open() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.closest("section")?.hidden) {
      form.reset();
      filter();
    }
    for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    target.scrollIntoView();
  }

  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.sort");
    if (button) sort(button);
  });
  addEventListener("hashchange", open);
  filter();
  open();
})();
