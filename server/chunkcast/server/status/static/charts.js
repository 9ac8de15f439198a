// Small SVG charts from arrays. They know nothing of policies; colours come from the style sheet's classes.

const NS = "http://www.w3.org/2000/svg";

function node(name, attributes = {}, text = "") {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

function niceMax(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

export const short = (value) =>
  value === 0 ? "0" : Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));

// series: [{className, points: [[x, y or null]]}]; options: {height, label, log, limit, from, to, xLabels: [[x, text]]}
export function lineChart(series, options) {
  const width = 420, height = options.height ?? 150, left = options.bare ? 2 : 38, right = 6, top = 8;
  const bottom = options.bare ? 4 : 20;
  const points = series.flatMap((each) => each.points).filter(([, y]) => y !== null && (!options.log || y > 0));
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.label });
  if (!points.length) return svg;
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const x0 = options.from ?? Math.min(...xs), x1 = Math.max(options.to ?? Math.max(...xs), x0 + 1e-9);
  const flip = options.log ? Math.log10 : (y) => y;
  const low = options.log ? Math.floor(flip(Math.min(...ys))) : 0;
  const high = options.log ? Math.max(Math.ceil(flip(Math.max(...ys))), low + 1)
    : niceMax(Math.max(...ys, options.limit ?? 0, options.least ?? 0));
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((flip(y) - low) / (high - low)) * (height - top - bottom);
  if (!options.bare) {
    const ticks = options.log ? Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i))
      : [0, 0.25, 0.5, 0.75, 1].map((share) => share * high);
    for (const tick of ticks) {
      svg.append(node("line", { class: "grid", x1: left, x2: width - right, y1: py(tick), y2: py(tick) }));
      svg.append(node("text", { x: left - 5, y: py(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    for (const [x, text, anchor] of options.xLabels ?? []) {
      svg.append(node("text", { x: px(x), y: height - 5, "text-anchor": anchor ?? "middle" }, text));
    }
  }
  if (options.limit !== undefined) {
    svg.append(node("line", { class: "limit", x1: left, x2: width - right, y1: py(options.limit), y2: py(options.limit) }));
  }
  for (const { className, points: own } of series) {
    let path = "", pen = "M";
    const shown = own.filter(([, y]) => y !== null && (!options.log || y > 0));
    for (const [x, y] of own) {
      if (y === null || (options.log && !(y > 0))) { pen = "M"; continue; }
      path += `${pen}${px(x).toFixed(1)} ${py(Math.min(y, options.log ? y : high)).toFixed(1)}`;
      pen = "L";
    }
    const group = node("g", { class: className });
    group.append(node("path", { class: "line", d: path }));
    if (shown.length < 12) {
      for (const [x, y] of shown) group.append(node("circle", { class: "dot", cx: px(x), cy: py(y), r: 2.5 }));
    }
    svg.append(group);
  }
  return svg;
}

// marks: [{className, ratio, low, high, title}], on a scale from 0 to 100 %.
export function intervals(marks, label) {
  const width = 300, row = 12, height = marks.length * row + 14;
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const px = (share) => 4 + share * (width - 40);
  for (const share of [0, 0.5, 1]) {
    svg.append(node("line", { class: "grid", x1: px(share), x2: px(share), y1: 0, y2: height - 12 }));
    svg.append(node("text", { x: px(share), y: height - 1, "text-anchor": share ? "middle" : "start" }, `${share * 100} %`));
  }
  marks.forEach(({ className, ratio, low, high, title }, index) => {
    const y = row * index + row / 2;
    const group = node("g", { class: className });
    group.append(node("title", {}, title));
    group.append(node("line", { class: "whisker", x1: px(low), x2: px(high), y1: y, y2: y }));
    group.append(node("circle", { class: "dot", cx: px(ratio), cy: y, r: 4 }));
    svg.append(group);
  });
  return svg;
}
