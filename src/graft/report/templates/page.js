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

// Figures: opened large, magnified by wheel, keys or buttons, moved by dragging or arrows.
const viewer = document.getElementById("viewer");
const stage = viewer.querySelector(".stage");
let whole, part; // view boxes: x, y, width, height

for (const chart of document.querySelectorAll(".chart")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.textContent = "Enlarge";
  button.setAttribute("aria-label", `Enlarge: ${chart.getAttribute("aria-label")}`);
  button.addEventListener("click", () => openViewer(chart));
  chart.after(button);
}

function openViewer(chart) {
  const copy = chart.cloneNode(true);
  copy.className = "chart large";
  stage.replaceChildren(copy);
  viewer.append(hint); // what is outside of a modal dialog is drawn below it
  whole = picture().getAttribute("viewBox").split(/[ ,]+/).map(Number);
  look(whole);
  viewer.showModal();
}

function picture() {
  return stage.querySelector("svg");
}

function look(box) {
  part = box;
  picture().setAttribute("viewBox", box.join(" "));
}

function magnify(factor, across = 0.5, down = 0.5) {
  const [x, y, width, height] = part;
  const wide = Math.min(whole[2], Math.max(whole[2] / 40, width / factor));
  const high = (wide * whole[3]) / whole[2];
  if (wide === whole[2]) look(whole);
  else look([x + (width - wide) * across, y + (height - high) * down, wide, high]);
}

function move(across, down) {
  const [x, y, width, height] = part;
  const held = (at, low, size, room) => Math.min(Math.max(at, low), low + size - room);
  look([held(x + across * width, whole[0], whole[2], width), held(y + down * height, whole[1], whole[3], height), width, height]);
}

const ACTS = {
  in: () => magnify(1.5),
  out: () => magnify(1 / 1.5),
  reset: () => look(whole),
  close: () => viewer.close(),
};
const KEYS = { "+": "in", "=": "in", "-": "out", 0: "reset" };
const ARROWS = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };

viewer.addEventListener("click", (event) => ACTS[event.target.dataset.act]?.());
viewer.addEventListener("close", () => document.body.append(hint));
viewer.addEventListener("keydown", (event) => {
  if (KEYS[event.key]) ACTS[KEYS[event.key]]();
  else if (ARROWS[event.key]) move(...ARROWS[event.key]);
  else return;
  event.preventDefault();
});
stage.addEventListener(
  "wheel",
  (event) => {
    const place = picture().getBoundingClientRect();
    const factor = Math.exp(-event.deltaY / 400);
    magnify(factor, (event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height);
    event.preventDefault();
  },
  { passive: false },
);
stage.addEventListener("pointermove", (event) => {
  if (event.buttons !== 1) return;
  const place = picture().getBoundingClientRect();
  move(-event.movementX / place.width, -event.movementY / place.height);
});

// On paper nothing can be opened: everything is.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
