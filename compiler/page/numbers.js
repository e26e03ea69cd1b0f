// Numbers as people read them.

function scaled(value, units, digits = 3) {
  const [unit, step] = units.find(([, step]) => value >= step) ?? units.at(-1);
  const shown = value / step;
  const places = shown >= 100 ? 0 : shown >= 10 ? 1 : 2;
  return `${shown.toFixed(Math.min(places, digits))} ${unit}`;
}

const BYTES = [
  ["GiB", 2 ** 30],
  ["MiB", 2 ** 20],
  ["KiB", 2 ** 10],
  ["B", 1],
];
const SECONDS = [
  ["s", 1],
  ["ms", 1e-3],
  ["µs", 1e-6],
  ["ns", 1e-9],
];
const FLOPS = [
  ["TFLOP", 1e12],
  ["GFLOP", 1e9],
  ["MFLOP", 1e6],
  ["kFLOP", 1e3],
  ["FLOP", 1],
];

function bytesText(value) {
  return value < 1024 ? `${value} B` : scaled(value, BYTES);
}

function secondsText(value) {
  return value === 0 ? "0 s" : scaled(value, SECONDS);
}

function flopsText(value) {
  return value < 1000 ? `${value} FLOP` : scaled(value, FLOPS);
}

function countText(value) {
  return value.toLocaleString("en-US");
}

function shareText(share) {
  return share >= 0.0995 ? `${(100 * share).toFixed(0)}%` : `${(100 * share).toFixed(1)}%`;
}

function plural(count, noun, several = `${noun}s`) {
  return `${countText(count)} ${count === 1 ? noun : several}`;
}

// "3.2x less", "as much", "1.5x more": how a number changed.
function changeText(before, after, less = "less", more = "more") {
  if (before === after || before <= 0) return "as before";
  if (after <= 0) return "none left";
  const factor = before / after;
  if (Math.abs(factor - 1) < 0.005) return "as before";
  const shown = factor >= 1 ? factor : 1 / factor;
  return `${shown.toFixed(shown < 10 ? 2 : 1)}× ${factor > 1 ? less : more}`;
}

// Round values between two bounds, for an axis: about `count` of them.
function ticks(low, high, count = 5, base = 10) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / count;
  const power = base ** Math.floor(Math.log(rough) / Math.log(base));
  const steps = base === 10 ? [1, 2, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
  const step = power * steps.find((s) => s * power >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}
