(() => {
  "use strict";

  const opposite = { ascending: "descending", descending: "ascending" };

  function sortRows(table, heads, column) {
    const head = heads[column];
    const direction = opposite[head.getAttribute("aria-sort")] || head.dataset.first || "descending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const isNumber = head.classList.contains("number");
    const keyOf = (row) => {
      const cell = row.cells[column];
      return isNumber ? parseFloat(cell.dataset.value) : cell.textContent;
    };
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, key: keyOf(row) }));
    rows.sort((one, other) => {
      if (!isNumber) return sign * one.key.localeCompare(other.key, "en", { numeric: true });
      // What was not measured is last in either direction.
      if (isNaN(one.key) || isNaN(other.key)) return isNaN(one.key) - isNaN(other.key);
      return sign * (one.key - other.key);
    });
    body.append(...rows.map(({ row }) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sortRows(table, heads, column));
      head.append(button);
    });
  }

  const filter = document.querySelector(".filter");
  if (filter && filter.querySelectorAll("input").length > 1) {
    filter.hidden = false;
    filter.addEventListener("change", ({ target }) => {
      for (const row of document.querySelectorAll(".scene .row")) {
        if (row.dataset.model === target.value) row.hidden = !target.checked;
      }
    });
  }

  const dialog = document.getElementById("large");
  dialog.addEventListener("click", () => dialog.close());
  for (const image of document.querySelectorAll(".pictures img")) {
    const show = () => {
      const copy = document.createElement("img");
      copy.src = image.src;
      copy.alt = image.alt;
      const title = document.createElement("p");
      title.textContent = image.alt;
      dialog.replaceChildren(copy, title);
      dialog.showModal();
    };
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.addEventListener("click", show);
    image.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      show();
    });
  }

  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
})();
