"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = JSON.parse(document.getElementById("dark").textContent);
  const isDark = matchMedia("(prefers-color-scheme: dark)");
  const isNarrow = matchMedia("(max-width: 700px)");
  const state = document.documentElement.dataset;
  const screen = () => `${isNarrow.matches ? "narrow" : "wide"} ${isDark.matches ? "dark" : "light"}`;
  // Charts are drawn one after the other, so that the page answers meanwhile. If the screen has changed, all of them are
  // drawn again, after the drawing in progress has stopped: two drawings of one chart could end in either order. The
  // screen is compared, and events are not counted, since a browser may send none for what a script has already read.
  const draw = async () => {
    const drawnFor = screen();
    const colour = (_, value) => (isDark.matches && typeof value === "string" && dark[value]) || value;
    for (const [key, { rows, wide, narrow }] of Object.entries(figures)) {
      const place = document.getElementById(`chart-${key}`);
      const chart = JSON.parse(JSON.stringify(isNarrow.matches ? narrow : wide), colour);
      const spec = { ...chart, data: { values: rows.map((row) => ({ ...row })) } };
      try {
        await vegaEmbed(place, spec, { actions: false, renderer: "svg", ast: false });
      } catch (error) {
        place.textContent = `This figure could not be drawn: ${error.message}. Its SVG file is in the folder figures/ next to this page.`;
        console.error(key, error);
      }
      await new Promise((resolve) => setTimeout(resolve));
      if (screen() !== drawnFor) return;
    }
    state.screen = drawnFor;
  };
  let isDrawing = false;
  const drawUntilRight = async () => {
    if (isDrawing) return;
    isDrawing = true;
    state.drawn = "";
    while (state.screen !== screen()) await draw();
    state.drawn = "all";
    isDrawing = false;
  };
  for (const change of [isDark, isNarrow]) change.addEventListener("change", drawUntilRight);
  drawUntilRight();

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
    update();
  };
  for (const heading of table.tHead.rows[0].cells) heading.firstElementChild.addEventListener("click", () => sortBy(heading));

  // Rows are shown if they match every menu and every word of the search; at first only some of them, then all.
  const form = document.getElementById("filters");
  const search = document.getElementById("search");
  const more = document.getElementById("more");
  const menus = [...form.querySelectorAll("select")];
  const first = Number(table.dataset.first);
  let everything = false;
  const matches = (row, words) =>
    menus.every(({ name, value }) => !value || row.dataset[name] === value ||
      (name === "layers" && row.dataset.layers.split(" ").includes(value))) &&
    words.every((word) => row.textContent.toLowerCase().includes(word));
  const update = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    const rows = [...table.tBodies[0].rows];
    const found = new Set(rows.filter((row) => matches(row, words)));
    const shown = new Set([...found].slice(0, everything || found.size <= first + 5 ? found.size : first));
    for (const row of rows) row.hidden = !shown.has(row);
    const filtered = found.size < rows.length ? `, ${found.size} of them match the filters` : "";
    document.getElementById("shown").textContent = found.size
      ? `Showing ${shown.size} of ${rows.length} coders${shown.size < found.size ? filtered : ""}.`
      : `No coder matches; clear the filters to see all ${rows.length}.`;
    more.hidden = found.size <= first + 5;
    more.textContent = everything ? `Show only the first ${first} rows` : `Show all ${found.size} rows`;
    more.setAttribute("aria-expanded", String(everything));
    form.querySelector("[type=reset]").hidden = !search.value && menus.every(({ value }) => !value);
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { update(); search.focus(); }));
  more.addEventListener("click", () => { everything = !everything; update(); });
  update();
})();
