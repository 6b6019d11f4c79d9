// A figure on the page: controls, legend, read-out, table and downloads around a chart. A choice of width, stepsizes or
// model applies to all figures of the page.

const EXTRA = {
  seeds: "seeds",
  eta: "eta",
  eta_beta: "eta beta(b)",
  eta_k_op: "eta k_op",
  h_interp: "predicted h",
  target: "at L ≤",
  width: "width",
  q: "sharpness q",
};

const METRIC = 3; // the place of the metric among the choices, in a sweep with targets of several

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A mixed color as red, green and blue, a notation that every program understands that opens SVG files. */
function asRgb(colour) {
  const pixel = html("canvas", { width: 1, height: 1 }).getContext("2d");
  pixel.fillStyle = colour;
  pixel.fillRect(0, 0, 1, 1);
  return `rgb(${[...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3).join(", ")})`;
}

class Page {
  constructor(payload) {
    this.payload = payload;
    this.selection = [...payload.start];
    this.glossary = new Glossary("th, #predictions tbody, figcaption, .answer p, .answer li, .notes li, section > p");
    this.levels = new Map(); // the target chosen for each model and data set, and metric
    this.answers = [...document.querySelectorAll("[data-target]")].map(
      (place) => new Answer(this, place, payload.targets[Number(place.dataset.target)]),
    );
    this.answers.forEach((answer) => answer.update());
    // A figure that cannot be drawn is replaced by its error, and the others are unaffected.
    this.figures = payload.figures.flatMap((data) => {
      try {
        const figure = new Figure(this, data);
        figure.update();
        return [figure];
      } catch (error) {
        const place = document.querySelector(`[data-figure="${data.name}"] .drawn`);
        place.replaceChildren(html("p", { class: "failed" }, `This figure could not be drawn (${error}).`));
        return [];
      }
    });
  }

  /** Set one of the choices, for all figures. */
  pick(k, value) {
    this.selection[k] = value;
    this.figures.forEach((figure) => figure.update());
  }

  /** Set the target of a model and data set, for all figures. */
  aim(at, metric, level) {
    this.levels.set(`${at}|${metric}`, level);
    this.answers.forEach((answer) => answer.update());
    if (this.selection.length > METRIC) this.selection[METRIC] = metric;
    this.pick(0, at);
  }

  /** The index, among some levels, of the target that was chosen; without a choice, the index at which they start. */
  placeOf(at, metric, levels, start) {
    const key = `${at}|${metric}`;
    return this.levels.has(key) ? nearestLevel(levels, this.levels.get(key)) : start;
  }
}

class Figure {
  constructor(page, data) {
    this.page = page;
    this.data = data;
    this.state = { x: data.x[0].key, of: null, logX: data.x[0].log, logY: data.y.log, hidden: new Set() };
    this.at = null; // the point whose values are shown: its index in this.points
    this.controls = html("div", { class: "controls" });
    this.legend = html("div", { class: "legend", role: "group", "aria-label": "Show and hide" });
    this.shown = html("p", { class: "shown" });
    this.plot = html("div", { class: "plot", role: "application", tabindex: "0", "aria-roledescription": "chart" });
    this.readout = html("output", { class: "readout", "aria-live": "polite" });
    this.notes = html("ul", { class: "notes" });
    this.table = html("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${data.title}: values` });
    this.details = html("details", {}, html("summary", {}, "Values as a table"), this.table);
    const files = html("p", { class: "files" });
    for (const [label, kind] of [["Values (CSV)", "csv"], ["Drawing (SVG)", "svg"]]) {
      const button = html("button", { type: "button", "data-file": kind }, `Download: ${label}`);
      button.addEventListener("click", () => this.download(kind));
      files.append(button);
    }
    const place = document.querySelector(`[data-figure="${data.name}"] .drawn`);
    place.append(this.controls, this.shown, this.legend, this.plot, this.readout, this.notes, this.details, files);
    this.makeControls();
    this.listen();
  }

  makeControls() {
    const { data, page, state } = this;
    this.selects = page.payload.choices.map((label, k) => this.addSelect(label, (value) => page.pick(k, value)));
    if (data.views.some((view) => view.by)) {
      this.slider = new Slider((level) => page.aim(this.view.at[0], this.view.metric, level));
      this.controls.append(this.slider.box);
    }
    if (data.x.length > 1) {
      const axis = this.addSelect("Horizontal axis", (value) => {
        state.x = value;
        this.draw();
      });
      axis.select.append(...data.x.map((one) => html("option", { value: one.key }, one.label)));
      axis.select.dataset.control = "x";
    }
    if (data.of) {
      this.quantity = this.addSelect("Vertical axis", (value) => {
        state.of = value;
        this.update();
      });
      this.quantity.select.dataset.control = "y";
    }
    for (const [key, label] of [["logX", "log horizontal"], ["logY", "log vertical"]]) {
      const box = html("input", { type: "checkbox", "data-control": key });
      box.checked = state[key];
      box.addEventListener("change", () => {
        state[key] = box.checked;
        this.draw();
      });
      this.controls.append(html("label", { class: "box" }, box, label));
    }
  }

  addSelect(label, picked) {
    const select = html("select", { "data-control": label });
    select.addEventListener("change", () => picked(select.value));
    const box = html("label", {}, html("span", {}, label), select);
    this.controls.append(box);
    return { box, select };
  }

  /** The view for the choices made on the page, or the nearest one that this figure has. */
  update() {
    let views = this.data.views;
    this.selects.forEach(({ box, select }, k) => {
      const values = [...new Set(views.map((view) => view.at[k]))];
      const value = values.includes(this.page.selection[k]) ? this.page.selection[k] : values[0];
      select.replaceChildren(...values.map((one) => html("option", { value: one }, one)));
      select.value = value;
      box.hidden = new Set(this.data.views.map((view) => view.at[k])).size < 2;
      views = views.filter((view) => view.at[k] === value);
    });
    const picked = views.find((view) => view.of === this.state.of) || views[0];
    const place = picked.by ? this.page.placeOf(picked.at[0], picked.metric, picked.levels, picked.start) : 0;
    this.view = viewAt(picked, place);
    if (this.slider) {
      this.slider.box.hidden = !picked.by || picked.by.length < 2;
      if (picked.by) this.slider.show(picked, place, picked.own.includes(place));
    }
    if (this.quantity) {
      const { box, select } = this.quantity;
      const known = this.data.of.filter((one) => views.some((view) => view.of === one.key));
      select.replaceChildren(...known.map((one) => html("option", { value: one.key }, one.label)));
      select.value = this.view.of;
      box.hidden = known.length < 2;
    }
    const names = this.names();
    this.state.hidden = new Set([...this.state.hidden].filter((name) => names.includes(name)));
    const notes = this.view.notes || [];
    this.notes.replaceChildren(...notes.map((note) => html("li", {}, note)));
    this.notes.hidden = !notes.length;
    this.drawLegend();
    this.draw();
  }

  names() {
    return [...this.view.series, ...(this.view.marks || [])].map((entry) => entry.name);
  }

  drawLegend() {
    const { hidden } = this.state;
    const entries = [...this.view.series, ...(this.view.marks || [])];
    const buttons = entries.map((entry) => {
      const swatch = svg("svg", { viewBox: "0 0 28 16", width: 28, height: 16, "aria-hidden": "true" }, swatchOf(entry));
      const button = html("button", { type: "button", "aria-pressed": String(!hidden.has(entry.name)) }, swatch, entry.name);
      button.dataset.series = entry.name;
      button.addEventListener("click", () => {
        hidden[hidden.has(entry.name) ? "delete" : "add"](entry.name);
        button.setAttribute("aria-pressed", String(!hidden.has(entry.name)));
        this.draw();
      });
      for (const [event, name] of [["pointerenter", entry.name], ["focus", entry.name], ["pointerleave", null], ["blur", null]]) {
        button.addEventListener(event, () => this.emphasize(name));
      }
      return button;
    });
    if (entries.length > 5) {
      for (const [label, chosen] of [["all", []], ["none", entries.map((entry) => entry.name)]]) {
        const button = html("button", { type: "button", class: "every", "data-every": label }, label);
        button.addEventListener("click", () => {
          this.state.hidden = new Set(chosen);
          this.drawLegend();
          this.draw();
          this.legend.querySelector(`[data-every="${label}"]`).focus();
        });
        buttons.push(button);
      }
    }
    this.legend.replaceChildren(...buttons);
  }

  draw() {
    const width = Math.max(260, Math.floor(this.plot.clientWidth));
    this.width = width;
    const drawn = drawChart(this.data, this.view, { ...this.state, width });
    Object.assign(this, drawn); // root, points, top, frame
    drawn.root.setAttribute("aria-hidden", "true"); // its content is in the label, the read-out and the table
    this.plot.replaceChildren(drawn.root);
    const choices = this.page.payload.choices.map((name, k) => `${name.toLowerCase()}: ${this.view.at[k]}`).join("; ");
    const target = this.slider && !this.slider.box.hidden ? `; target: ${this.slider.words.textContent}` : "";
    this.shown.textContent = `${choices}${target}.`;
    const help = "Arrow keys move from point to point, Escape leaves.";
    this.plot.setAttribute("aria-label", `${this.data.title}; ${choices}. ${this.view.summary} ${help}`);
    this.show(null);
    if (this.details.open) this.fillTable();
  }

  listen() {
    this.plot.addEventListener("pointermove", (event) => this.show(this.nearest(event)));
    this.plot.addEventListener("pointerdown", (event) => this.show(this.nearest(event)));
    this.plot.addEventListener("pointerleave", () => this.show(null));
    this.plot.addEventListener("focus", () => {
      if (this.at === null && this.plot.matches(":focus-visible") && this.points.length) this.show(0);
    });
    this.plot.addEventListener("blur", () => this.show(null));
    this.plot.addEventListener("keydown", (event) => {
      const moved = this.moved(event.key);
      if (moved === undefined) return;
      event.preventDefault();
      this.show(moved);
    });
    this.details.addEventListener("toggle", () => this.details.open && this.fillTable());
    new ResizeObserver(() => {
      if (this.view && Math.abs(this.plot.clientWidth - this.width) > 1) this.draw();
    }).observe(this.plot);
  }

  nearest(event) {
    const box = this.root.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const distances = this.points.map((point) => (point.x - x) ** 2 + (point.y - y) ** 2);
    const least = Math.min(...distances);
    return least < 60 ** 2 ? distances.indexOf(least) : null;
  }

  /** The point to which a key moves from the present one; undefined for any other key. */
  moved(key) {
    const { points, at } = this;
    if (key === "Escape") return null;
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(key) || !points.length) return undefined;
    if (at === null) return 0;
    const names = [...new Set(points.map((point) => point.series.name))];
    const own = points.filter((point) => point.series === points[at].series);
    const place = own.indexOf(points[at]);
    const steps = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: own.length - 1 };
    if (key in steps) return points.indexOf(own[Math.min(own.length - 1, Math.max(0, steps[key]))]);
    const next = names.indexOf(points[at].series.name) + (key === "ArrowDown" ? 1 : -1);
    const others = points.filter((point) => point.series.name === names[(next + names.length) % names.length]);
    const gaps = others.map((point) => Math.abs(point.x - points[at].x));
    return points.indexOf(others[gaps.indexOf(Math.min(...gaps))]);
  }

  /** Mark a point and show its values; no point if `at` is null. */
  show(at) {
    this.at = at;
    this.top.replaceChildren();
    const point = at === null ? null : this.points[at];
    this.emphasize(point ? point.series.name : null);
    if (!point) {
      this.readout.textContent = "";
      return;
    }
    const { series, k, x, y } = point;
    const axis = this.data.x.find((one) => one.key === this.state.x);
    const { short } = { ...this.data.y, ...this.view.y };
    const values = `${axis.short} = ${format(series.x[this.state.x][k])}, ${short} = ${format(series.y[k])}`;
    const said = [`${series.name}: ${values}`];
    if (series.low && series.low[k] !== null) {
      const what = series.spread === "band" ? "seeds from" : "95 % interval";
      said.push(`${what} ${format(series.low[k])} to ${format(series.high[k])}`);
    }
    for (const [key, list] of Object.entries(series.extra || {})) said.push(`${EXTRA[key]} ${format(list[k])}`);
    this.readout.textContent = said.join("; ");
    this.top.append(svg("circle", { cx: x, cy: y, r: 8, class: "ring" }), ...this.tip([series.name, values], x, y));
  }

  /** A label next to a point, on the side with room for it. */
  tip(lines, x, y) {
    const { left, right, top } = this.frame;
    const width = Math.min(right - left, 14 + 6.6 * Math.max(...lines.map((line) => line.length)));
    const from = Math.max(left, Math.min(x + 14, right - width));
    const over = from < x + 12 ? -52 : -20;
    const at = Math.max(top, y + over);
    const box = svg("rect", { x: from, y: at, width, height: 38, rx: 3, class: "tip" });
    const words = lines.map((line, k) => svg("text", { x: from + 7, y: at + 15 + 16 * k, class: "tip-text" }, line));
    return [box, ...words];
  }

  emphasize(name) {
    const groups = [...this.root.querySelectorAll(".series")];
    const known = groups.some((group) => group.dataset.name === name);
    groups.forEach((group) => group.classList.toggle("faint", known && group.dataset.name !== name));
  }

  /** The values of the view as rows, the heads first. */
  rows() {
    const measured = this.view.series.filter((series) => series.interactive !== false);
    const extra = [...new Set(measured.flatMap((series) => Object.keys(series.extra || {})))];
    const interval = measured.some((series) => series.low);
    const heads = ["curve", ...this.data.x.map((axis) => axis.label), (this.view.y || this.data.y).label];
    if (interval) heads.push("low", "high");
    const rows = measured.flatMap((series) =>
      series.y.map((value, k) => [
        series.name,
        ...this.data.x.map((axis) => series.x[axis.key][k]),
        value,
        ...(interval ? [(series.low || [])[k], (series.high || [])[k]] : []),
        ...extra.map((key) => ((series.extra || {})[key] || [])[k]),
      ]),
    );
    return [[...heads, ...extra.map((key) => EXTRA[key])], ...rows];
  }

  fillTable() {
    const [heads, ...rows] = this.rows();
    const kind = (k) => (k ? {} : { class: "text" });
    const head = html("tr", {}, ...heads.map((name, k) => html("th", { scope: "col", ...kind(k) }, name)));
    const cell = (value, k) => html("td", kind(k), typeof value === "string" ? value : format(value));
    const body = rows.map((row) => html("tr", {}, ...row.map(cell)));
    this.table.replaceChildren(html("table", {}, html("thead", {}, head), html("tbody", {}, ...body)));
  }

  csv() {
    const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const lines = this.rows().map((row) => row.map((value) => quoted(String(value ?? ""))).join(","));
    return lines.join("\r\n") + "\r\n";
  }

  /** The drawing with its legend, in the colors that the page has now. */
  drawing() {
    const { root } = drawChart(this.data, this.view, { ...this.state, width: 760, legend: true });
    this.plot.append(root); // only elements on the page have computed styles
    const names = ["color", "fill", "stroke", "stroke-width", "opacity", "font-family", "font-size", "font-weight"];
    for (const element of root.querySelectorAll("*")) {
      const style = getComputedStyle(element);
      const value = (name) => style.getPropertyValue(name).replace(/^okl\w+\(.*\)$/, asRgb);
      element.setAttribute("style", names.map((name) => `${name}:${value(name)}`).join(";"));
    }
    root.remove();
    const page = svg("rect", { width: "100%", height: "100%", style: `fill:${getComputedStyle(document.body).backgroundColor}` });
    root.prepend(svg("title", {}, this.data.title), svg("desc", {}, this.view.summary), page);
    root.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    return root.outerHTML;
  }

  download(kind) {
    const [text, type] = kind === "csv" ? [this.csv(), "text/csv"] : [this.drawing(), "image/svg+xml"];
    const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
    const level = this.view.by && `${this.view.symbol.replace(/ .$/, "").replaceAll(" ", "-")}-${format(this.view.level)}`;
    const parts = [this.page.payload.file, this.data.name, ...this.view.at, this.view.of, level].join("-");
    const link = html("a", { href: url, download: `${parts.replace(/[^\w.]+/g, "-").replace(/-+$/, "")}.${kind}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
}

// JSON has no infinity: an open end of an interval is a text.
const infinite = (_, value) => (value === "Infinity" ? Infinity : value);
new Page(JSON.parse(document.getElementById("payload").textContent, infinite));
