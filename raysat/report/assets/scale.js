// Scales: functions from values to pixels, linear or logarithmic, and the values at which an axis has ticks.
"use strict";

/** Three significant digits, as in the tables of the page: 0.609, 24.9, 1,234. */
function format(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(3)));
}

/** The same for an axis: 10⁵ for 100,000, because long numbers do not fit next to it. */
function formatTick(value) {
  const power = Math.log10(Math.abs(value));
  if (value !== 0 && (power >= 5 || power < -3)) {
    const exponent = Math.floor(power + 1e-9);
    const digits = Number((value / 10 ** exponent).toPrecision(3));
    const raised = [...String(exponent)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] || "⁻").join("");
    return (digits === 1 ? "" : `${digits}·`) + `10${raised}`;
  }
  return Number(value.toPrecision(6)).toLocaleString("en-US", { maximumFractionDigits: 8 });
}

/**
 * Make a function from values to pixels.
 *
 * @param {number[]} values The values that the axis contains; a logarithmic one ignores those that are not positive.
 * @param {{log: boolean, zero: boolean, pad: number}} how `zero`: a linear axis starts at 0.
 * @param {number} from Pixel of the low end.
 * @param {number} to Pixel of the high end.
 * @returns {function} It has the values at its ends, and `within`, which moves a value beyond them to the nearer one.
 */
function makeScale(values, how, from, to) {
  const pass = how.log ? Math.log : (value) => value;
  const back = how.log ? Math.exp : (value) => value;
  const known = values.filter((value) => Number.isFinite(value) && (!how.log || value > 0));
  let low = known.length ? pass(Math.min(...known)) : 0;
  let high = known.length ? pass(Math.max(...known)) : 1;
  if (!how.log && how.zero && low > 0) low = 0;
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const room = how.pad * (high - low);
  if (how.log || !how.zero || low !== 0) low -= room;
  high += room;
  const scale = (value) => from + ((pass(value) - low) / (high - low)) * (to - from);
  const ends = { low: back(low), high: back(high) };
  const within = (value) => scale(Math.min(ends.high, Math.max(ends.low, value)));
  return Object.assign(scale, { ...ends, within, log: how.log, pixels: Math.abs(to - from) });
}

/** Round numbers between the ends of a scale, at least `gap` pixels apart; if there are `preferred` ones, those. */
function ticksOf(scale, gap, preferred) {
  const inside = (value) => value >= scale.low * (1 - 1e-9) && value <= scale.high * (1 + 1e-9);
  const count = Math.max(2, Math.floor(scale.pixels / gap));
  if (scale.log && preferred) return spaced(preferred.filter(inside), scale, gap);
  if (scale.log && scale.high > 5 * scale.low) {
    const powers = [];
    for (let power = Math.floor(Math.log10(scale.low)); power <= Math.log10(scale.high); power++) powers.push(10 ** power);
    const fine = powers.flatMap((power) => [power, 2 * power, 5 * power]).filter(inside);
    return fine.length <= count ? fine : spaced(powers.filter(inside), scale, gap);
  }
  const rough = (scale.high - scale.low) / count;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((digit) => digit * size >= rough);
  const shown = [];
  for (let k = Math.ceil(scale.low / step - 1e-9); k * step <= scale.high * (1 + 1e-9); k++) shown.push(k * step);
  return spaced(shown, scale, gap);
}

/** The values, without those that are too close to the next larger one that is kept. */
function spaced(values, scale, gap) {
  const kept = [];
  for (const value of [...values].reverse()) {
    if (!kept.length || Math.abs(scale(value) - scale(kept[0])) >= gap) kept.unshift(value);
  }
  return kept;
}
