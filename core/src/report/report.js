// What a page without scripts cannot do: values under the pointer, smoothed curves, sorted tables. The page is whole
// without it.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

const short = (value) => (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5)
  ? String(Number(value.toPrecision(4))) : value.toExponential(2));

// Exponential mean without the pull of its first value, as TensorBoard's.
function smoothed(points, weight) {
  let mean = 0, total = 0;
  return points.map(([x, y]) => {
    mean = weight * mean + (1 - weight) * y;
    total = weight * total + (1 - weight);
    return [x, mean / total];
  });
}

function chart(card) {
  const data = JSON.parse(card.querySelector("script").textContent);
  const svg = card.querySelector("svg");
  const { left, right, top, bottom } = data.area;
  const across = (x) => left + ((x - data.x[0]) / (data.x[1] - data.x[0])) * (right - left);
  const down = (y) => bottom - ((y - data.y[0]) / (data.y[1] - data.y[0])) * (bottom - top);
  const lines = element("g", { fill: "none", "stroke-width": 2 }, svg);
  const cursor = element("g", { visibility: "hidden" }, svg);
  const rule = element("line", { y1: top, y2: bottom, stroke: "currentColor", "stroke-opacity": 0.4 }, cursor);
  const values = document.createElement("p");
  values.className = "values";
  values.setAttribute("role", "status");
  card.append(values);
  const steps = [...new Set(data.series.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  let shown = data.series, at = -1;

  function show(index) {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[at];
    const found = shown.map((line) => ({ ...line, point: line.points.find(([x]) => x === step) }));
    cursor.querySelectorAll("circle").forEach((dot) => dot.remove());
    values.replaceChildren(`${data.x_label} ${short(step)}`);
    for (const { name, colour, point } of found.filter((line) => line.point)) {
      element("circle", { cx: across(point[0]), cy: down(point[1]), r: 4, fill: colour }, cursor);
      const entry = document.createElement("span");
      entry.style.color = colour;
      entry.textContent = "■ ";
      values.append(" ", entry, data.series.length > 1 ? `${name}: ` : "", short(point[1]));
    }
    rule.setAttribute("x1", across(step));
    rule.setAttribute("x2", across(step));
    cursor.setAttribute("visibility", "visible");
  }

  function hide() {
    at = -1;
    cursor.setAttribute("visibility", "hidden");
    values.replaceChildren();
  }

  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const distance = (step) => Math.abs(across(step) - x);
    show(steps.reduce((best, step, i) => (distance(step) < distance(steps[best]) ? i : best), 0));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { event.preventDefault(); show(at + move); }
  });

  return (weight) => {
    lines.replaceChildren();
    shown = weight > 0 ? data.series.map((line) => ({ ...line, points: smoothed(line.points, weight) })) : data.series;
    svg.classList.toggle("smoothed", weight > 0);
    if (weight > 0) {
      for (const line of shown) {
        const points = line.points.map(([x, y]) => `${across(x)},${down(y)}`).join(" ");
        element("polyline", { points, stroke: line.colour }, lines);
      }
    }
  };
}

function sortable(table) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => (isNaN(a) || isNaN(b) || a === "" || b === "" ? a.localeCompare(b) : a - b);
      const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b)));
      table.tBodies[0].append(...(rising ? rows : rows.reverse()));
    });
  });
}

const charts = [...document.querySelectorAll(".chart")].map((card) => [card.dataset.noisy === "true", chart(card)]);
document.querySelectorAll("table.sortable").forEach(sortable);
const smoothing = document.querySelector("#smoothing");
if (smoothing) {
  smoothing.closest("p").hidden = false;
  smoothing.addEventListener("input", () => {
    charts.filter(([noisy]) => noisy).forEach(([, smooth]) => smooth(Number(smoothing.value)));
  });
}
