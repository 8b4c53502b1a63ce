"use strict";

// Tables: a click on a column's head sorts by it, a second one the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortRows(table.tBodies[0], column, descending);
    });
  });
}

function sortRows(body, column, descending) {
  const text = (row) => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "") || 0; // what is empty stays below
    const [x, y] = [parseFloat(a), parseFloat(b)];
    const order = isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
    return descending ? -order : order;
  };
  body.append(...[...body.rows].sort((a, b) => compare(text(a), text(b))));
}

// Figures: what a mark stands for is shown beside the pointer.
const hint = document.getElementById("hint");
document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest(".chart [aria-roledescription][aria-label]");
  hint.hidden = !mark || !mark.closest("[role=img]") || mark.getAttribute("aria-roledescription") === "axis";
  if (!hint.hidden) hint.textContent = mark.getAttribute("aria-label");
});
document.addEventListener("pointermove", (event) => {
  if (hint.hidden) return;
  const left = Math.min(event.clientX + 14, innerWidth - hint.offsetWidth - 8);
  const below = event.clientY + 18;
  hint.style.left = `${Math.max(8, left)}px`;
  hint.style.top = `${below + hint.offsetHeight > innerHeight ? event.clientY - hint.offsetHeight - 10 : below}px`;
});

// On paper nothing can be opened: everything is.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
