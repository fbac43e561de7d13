// A click on a heading sorts its table by that column, again to turn it round.  Cells say in
// data-value what they sort by; cells without a number come last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.closest("th"), table = th.closest("table"), body = table.tBodies[0];
    const column = [...th.parentNode.children].indexOf(th);
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? "";
    const number = (text) => (text === "" ? NaN : Number(text));
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)], [m, n] = [number(x), number(y)];
      if (Number.isNaN(m) !== Number.isNaN(n)) return Number.isNaN(m) ? 1 : -1;
      const order = Number.isNaN(m) ? x.localeCompare(y) : m - n;
      return down ? -order : order;
    });
    body.append(...rows);
  });
}
