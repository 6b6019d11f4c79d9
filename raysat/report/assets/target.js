// The target: a slider in the answer and above each figure with several targets; all move together. A slider selects
// numbers that are on the page, and computes none.

/** A slider over the targets of a metric, from the easiest to the hardest. */
class Slider {
  constructor(picked) {
    this.input = html("input", { type: "range", min: 0, step: 1, "data-control": "target" });
    this.words = html("output");
    this.box = html("label", { class: "slider" }, html("span", {}, "Target"), this.input, this.words);
    this.input.addEventListener("input", () => picked(this.levels[Number(this.input.value)]));
  }

  show({ levels, symbol }, k, own) {
    this.levels = levels;
    const said = `${symbol} ${format(levels[k])}${own ? ", the sweep's own" : ""}`;
    this.input.max = levels.length - 1;
    this.input.value = k;
    this.input.setAttribute("aria-valuetext", said);
    this.words.textContent = said;
  }
}

/** The index of the level nearest to a loss. */
function nearestLevel(levels, loss) {
  const apart = levels.map((level) => Math.abs(Math.log(level / loss)));
  return apart.indexOf(Math.min(...apart));
}

/** The view at one of its targets, with what all targets share. */
function viewAt(view, k) {
  if (!view.by) return view;
  const own = view.by[k];
  const series = (own.series || view.series).map((one) => ({
    ...one,
    x: one.x || (one.interactive === false ? view.dense : view.x),
    ...(one.fit ? { fit: { x: view.dense, ...one.fit } } : {}),
  }));
  const both = (name) => [...(own[name] || []), ...(view[name] || [])];
  return { ...view, ...own, level: view.levels[k], series, marks: both("marks"), notes: both("notes") };
}

/** The slider of the answer, which also changes the sentence above it. */
class Answer {
  constructor(page, place, target) {
    this.page = page;
    this.target = target;
    this.sentence = place.previousElementSibling;
    this.sentence.setAttribute("aria-live", "polite");
    this.slider = new Slider((level) => page.aim(target.at, target.metric, level));
    const words = target.command.split(/(?<= )(?=--)/).map((word) => html("span", { class: "whole" }, word));
    this.end = html("p", { class: "soft" }, `${target.end} `, html("code", {}, ...words));
    place.append(html("div", { class: "controls" }, this.slider.box), this.end);
  }

  update() {
    const { at, metric, levels, start, own, said } = this.target;
    const k = this.page.placeOf(at, metric, levels, start);
    this.slider.show(this.target, k, own.includes(k));
    if (this.sentence.textContent !== said[k]) {
      this.sentence.textContent = said[k];
      this.page.glossary.mark(this.sentence);
    }
    this.end.hidden = !this.target.end || k < levels.length - 1;
  }
}
