"use strict";
// A point of the curve tells its plan below the plot.
for (const engine of document.querySelectorAll(".engine")) {
  const tell = () => {
    const place = engine.closest("figure").querySelector(".told");
    place.textContent = engine.dataset.plan;
    place.classList.remove("quiet");
  };
  for (const event of ["mouseenter", "focus", "click"]) engine.addEventListener(event, tell);
}
// Numbers sort by what they are worth: "−0.5", "1.2 kB", "0.58 to 0.62". What is no number comes last.
const worth = (cell) => {
  const found = /^([-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?)\s*([kMGT]?)/.exec(cell.textContent.trim().replace("−", "-").replace(/^P/, ""));
  if (found === null) return null;
  const factor = [1, 1e3, 1e6, 1e9, 1e12]["kMGT".indexOf(found[2] || "-") + 1];
  return Number(found[1].replaceAll(",", "")) * factor;
};
const sort = (table, column, up) => {
  const numbers = table.tHead.rows[0].cells[column].classList.contains("number");
  const keyed = Array.from(table.tBodies[0].rows, (row) => {
    const cell = row.cells[column];
    const key = cell === undefined ? null : numbers ? worth(cell) : cell.textContent.trim();
    return [key, row];
  });
  const compare = numbers ? (one, other) => one - other : (one, other) => one.localeCompare(other, "en", {numeric: true});
  keyed.sort(([one], [other]) => {
    if (one === null || other === null) return (one === null) - (other === null);
    return up ? compare(one, other) : compare(other, one);
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
};
// Headings become buttons, which the keyboard reaches.
for (const table of document.querySelectorAll("table")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    if (head.textContent.trim() === "") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(table, column, up);
    });
  });
}
