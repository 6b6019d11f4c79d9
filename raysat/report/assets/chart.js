// A chart: one view of a figure as SVG. Its functions change nothing: from the state they make elements and positions.

const MARKS = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z", // circle
  "M-3.5,-3.5H3.5V3.5H-3.5Z", // square
  "M0,-4.6L4.4,3.2H-4.4Z", // triangle
  "M0,-5L4.4,0L0,5L-4.4,0Z", // diamond
  "M0,4.6L4.4,-3.2H-4.4Z", // triangle, down
  "M-4.6,0L3.2,-4.4V4.4Z", // triangle, left
  "M4.6,0L-3.2,-4.4V4.4Z", // triangle, right
  "M-1.5,-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z", // cross
];
/** Colors of an ordered quantity, from small to large, as names in page.css, so that they follow the theme. */
const RAMP = ["--ramp-0", "--ramp-1", "--ramp-2", "--ramp-3", "--ramp-4"];

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The color of a series: by its position in an order, or by the name of its tone. */
function colourOf(series) {
  if (series.shade === undefined) return `var(--${series.tone})`;
  const at = series.shade * (RAMP.length - 1);
  const k = Math.min(RAMP.length - 2, Math.floor(at));
  return `color-mix(in oklab, var(${RAMP[k]}) ${(100 * (k + 1 - at)).toFixed(1)}%, var(${RAMP[k + 1]}))`;
}

/** The marker of a series; hollow from the ninth series on, so that no two of sixteen look the same. */
function markOf(series, x, y) {
  const hollow = series.hollow || series.mark >= MARKS.length;
  return svg("path", {
    d: MARKS[series.mark % MARKS.length],
    transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`,
    class: hollow ? "mark hollow" : "mark",
  });
}

/** The sample of a series, or of a marked value, in the legend. */
function swatchOf(entry) {
  const sample = svg("g", { style: `color:${colourOf(entry)}` });
  if (entry.line || entry.fit || entry.at !== undefined) {
    sample.append(svg("path", { d: "M1,8H27", class: "line", "stroke-dasharray": entry.dash || "none" }));
  }
  if (entry.mark !== undefined) sample.append(markOf(entry, 14, 8));
  return sample;
}

/**
 * Draw a view.
 *
 * @param {object} figure Its axes.
 * @param {object} view Its series and marks.
 * @param {{x: string, logX: boolean, logY: boolean, hidden: Set<string>, width: number, legend: boolean}} state
 * @returns {{root: SVGElement, points: object[], top: SVGElement}} The drawing, the position in pixels of each point
 *     whose values can be shown, and an empty group above all others.
 */
function drawChart(figure, view, state) {
  const axis = figure.x.find((one) => one.key === state.x);
  const shown = view.series.filter((series) => !state.hidden.has(series.name));
  const marked = (view.marks || []).filter((mark) => !state.hidden.has(mark.name));
  const height = Math.round(Math.min(430, Math.max(280, 0.58 * state.width)));
  const xs = shown.flatMap((series) => series.x[state.x]);
  const bound = shown.filter((series) => !series.clip);
  const ys = (bound.length ? bound : shown).flatMap((series) => [
    ...series.y,
    ...(series.low || []),
    ...(series.high || []),
  ]);
  const numeric = (values) => values.filter((value) => value !== null);
  const bottom = height - 44;
  const y = makeScale(numeric(ys), { log: state.logY, zero: true, pad: 0.06 }, bottom, 30);
  const yTicks = ticksOf(y, 30);
  const left = 16 + 7 * Math.max(3, ...yTicks.map((value) => formatTick(value).length));
  const right = state.width - 14;
  const x = makeScale(numeric(xs), { log: state.logX, zero: false, pad: 0.03 }, left, right);
  const xTicks = ticksOf(x, 42, (view.ticks || {})[state.x]);

  const root = svg("svg", { viewBox: `0 0 ${state.width} ${height}`, width: state.width, height, class: "chart" });
  const clip = `clip-${figure.name}${state.legend ? "-file" : ""}`;
  root.append(svg("clipPath", { id: clip }, svg("rect", { x: left, y: 24, width: right - left, height: bottom - 24 })));
  for (const value of yTicks) {
    const at = y(value).toFixed(1);
    root.append(svg("path", { d: `M${left},${at}H${right}`, class: "grid" }));
    root.append(svg("text", { x: left - 6, y: at, dy: "0.32em", "text-anchor": "end" }, formatTick(value)));
  }
  for (const value of xTicks) {
    const at = x(value).toFixed(1);
    root.append(svg("path", { d: `M${at},${bottom}v5`, class: "axis" }));
    root.append(svg("text", { x: at, y: bottom + 18, "text-anchor": "middle" }, formatTick(value)));
  }
  root.append(svg("path", { d: `M${left},${bottom}H${right}`, class: "axis" }));
  root.append(svg("text", { x: right, y: height - 6, "text-anchor": "end", class: "name" }, axis.label));
  root.append(svg("text", { x: 2, y: 14, class: "name" }, (view.y || figure.y).label));

  const plane = svg("g", { "clip-path": `url(#${clip})` });
  root.append(plane);
  for (const mark of marked) plane.append(drawMark(mark, x, bottom));
  const fits = (value, scale) => value !== null && (!scale.log || value > 0);
  const points = [];
  for (const series of shown) {
    const group = svg("g", { class: "series", style: `color:${colourOf(series)}` });
    group.dataset.name = series.name;
    const at = series.x[state.x];
    const places = at.flatMap((value, k) =>
      fits(value, x) && fits(series.y[k], y) ? [{ series, k, x: x(value), y: y(series.y[k]) }] : [],
    );
    if (series.spread === "band") group.append(drawBand(series, places, y));
    if (series.fit) {
      const curve = series.fit.x[state.x].map((value, k) => ({ x: x(value), y: y(series.fit.y[k]) }));
      group.append(drawLine(curve, series.dash));
    }
    if (series.line) group.append(drawLine(places, series.dash));
    if (series.spread === "bars") group.append(...drawBars(series, places, y));
    if (series.mark !== undefined) {
      // Lines with many points have a marker at every fourth, shifted by series, so that the markers stay apart.
      const every = series.line && places.length > 12 ? 4 : 1;
      const chosen = places.filter((_, k) => every === 1 || k === places.length - 1 || k % every === series.mark % every);
      group.append(...chosen.map((place) => markOf(series, place.x, place.y)));
    }
    plane.append(group);
    if (series.interactive !== false) points.push(...places);
  }
  if (!shown.length) {
    root.append(svg("text", { x: (left + right) / 2, y: height / 2, "text-anchor": "middle" }, "All curves are hidden."));
  }
  const top = svg("g", { class: "top" });
  root.append(top);
  if (state.legend) addLegend(root, [...shown, ...marked], state.width, height);
  return { root, points, top, frame: { left, right, top: 24, bottom } };
}

function drawLine(places, dash) {
  const d = places.map((place, k) => `${k ? "L" : "M"}${place.x.toFixed(1)},${place.y.toFixed(1)}`).join("");
  return svg("path", { d, class: "line", "stroke-dasharray": dash || "none" });
}

function drawBand(series, places, y) {
  const edge = (place, end) => {
    const value = series[end][place.k];
    return `${place.x.toFixed(1)},${(value === null ? place.y : y.within(value)).toFixed(1)}`;
  };
  const there = places.map((place) => edge(place, "low"));
  const back = places.map((place) => edge(place, "high")).reverse();
  return svg("path", { d: places.length ? `M${[...there, ...back].join("L")}Z` : "", class: "band" });
}

function drawBars(series, places, y) {
  const ends = (place) => [series.low[place.k], series.high[place.k]];
  const known = places.filter((place) => ends(place).every((end) => end !== null));
  return known.map((place) => {
    const at = place.x.toFixed(1);
    const [low, high] = ends(place).map((end) => y.within(end).toFixed(1));
    // An end beyond the frame has no cap, because the bar continues.
    const caps = ends(place).map((end) => (end >= y.low && end <= y.high ? `M${at - 3},${y(end).toFixed(1)}h6` : ""));
    return svg("path", { d: `M${at},${low}V${high}${caps.join("")}`, class: "bar" });
  });
}

function drawMark(mark, x, bottom) {
  const group = svg("g", { class: "series", style: `color:${colourOf(mark)}` });
  group.dataset.name = mark.name;
  if (x.log && mark.at <= 0) return group;
  if (mark.low !== null && mark.high !== null) {
    const [from, to] = [x.within(mark.low), x.within(mark.high)];
    group.append(svg("rect", { x: from, y: 24, width: to - from, height: bottom - 24, class: "band" }));
  }
  const at = x(mark.at).toFixed(1);
  group.append(svg("path", { d: `M${at},24V${bottom}`, class: "line", "stroke-dasharray": mark.dash }));
  return group;
}

/** The legend as part of the drawing, for a file that is downloaded. */
function addLegend(root, entries, width, height) {
  const columns = Math.max(1, Math.floor(width / 240));
  const rows = Math.ceil(entries.length / columns);
  entries.forEach((entry, k) => {
    const place = `translate(${12 + (k % columns) * (width / columns)},${height + 8 + 20 * Math.floor(k / columns)})`;
    root.append(svg("g", { transform: place }, swatchOf(entry), svg("text", { x: 34, y: 12 }, entry.name)));
  });
  root.setAttribute("viewBox", `0 0 ${width} ${height + 20 * rows + 16}`);
  root.setAttribute("height", height + 20 * rows + 16);
}
