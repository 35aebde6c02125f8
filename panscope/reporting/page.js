"use strict";
(() => {
  // Charts are drawn one after the other, so that the page answers while they are.
  const draw = async () => {
    const figures = JSON.parse(document.getElementById("figures").textContent);
    for (const [key, spec] of Object.entries(figures)) {
      const place = document.getElementById(`chart-${key}`);
      try {
        await vegaEmbed(place, spec, { actions: false, renderer: "svg", ast: false });
      } catch (error) {
        place.textContent = `This figure could not be drawn: ${error.message}. Its SVG file is beside this page.`;
        console.error(key, error);
      }
      await new Promise((resolve) => setTimeout(resolve));
    }
    document.documentElement.dataset.drawn = "all";
  };

  const table = document.getElementById("results");
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = [Number(a), Number(b)];
    return numbers.some(Number.isNaN) ? a.localeCompare(b, undefined, { numeric: true }) : numbers[0] - numbers[1];
  };
  const sortBy = (heading) => {
    const column = heading.cellIndex;
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const known = rows.filter((row) => value(row, column) !== "");
    known.sort((a, b) => compare(value(a, column), value(b, column)) * (falling ? -1 : 1));
    table.tBodies[0].append(...known, ...rows.filter((row) => value(row, column) === ""));
  };
  for (const heading of table.tHead.rows[0].cells) heading.firstElementChild.addEventListener("click", () => sortBy(heading));

  const search = document.getElementById("search");
  const shown = document.getElementById("shown");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    let count = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = `${count} of ${table.tBodies[0].rows.length} coders`;
  };
  search.addEventListener("input", filter);
  filter();
  draw();
})();
