// A click on a header sorts its table by that column: numbers by their value, texts by the alphabet; again, the reverse.
document.addEventListener("click", (event) => {
  const header = event.target.closest("article th");
  if (!header) return;
  const down = header.getAttribute("aria-sort") !== "ascending";
  const rows = [...header.closest("table").tBodies[0].rows];
  const keyed = rows.map((row) => [row.cells[header.cellIndex].textContent.trim(), row]);
  const compare = ([one], [other]) => {
    const [x, y] = [parseFloat(one), parseFloat(other)];
    return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) || one.localeCompare(other) : x - y;
  };
  keyed.sort((one, other) => (down ? 1 : -1) * compare(one, other));
  for (const each of header.parentElement.cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "ascending" : "descending");
  keyed[0]?.[1].parentElement.append(...keyed.map(([, row]) => row));
});
