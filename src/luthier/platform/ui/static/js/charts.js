// Draws `figure.chart[data-chart]` with ECharts over the server's own drawing, in the colours of the page.
// For live plots: `window.Luthier.charts.append(key, name, points)` adds points to a series, `replace` replaces all its
// points, `forgetAfter(key, x)` drops those after x, `mark(key, marks)` sets the marks, and `refresh()` draws
// what has changed: only the lines, only of visible charts. `ready` is a promise of the first drawing.
// `clock(points, isAll)` gives the seconds of steps, for plots of the group `run` over time. Every plot has buttons to
// zoom, to go back to all of it, and to save it as a picture (PNG) or a table (CSV).
const charts = new Map(); // by key: { figure, spec, chart, isStale, isSeen, smoothing, isLog, zoom }
const RUN_GROUP = "run";
let axisName = "step", clock = [];
const MOST_POINTS = 2000, FEWEST_SMOOTHED = 30, MOST_NAMED = 16, MOST_IN_LEGEND = 8;

const colours = new Map(); // what has been looked up in this theme

function colour(name) {
  if (!colours.has(name)) colours.set(name, lookedUp(name));
  return colours.get(name);
}

function lookedUp(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function number(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size && (size >= 1e6 || size < 1e-3)) return Number(value.toPrecision(3)).toExponential().replace("e+", "e").replaceAll("-", "\u2212");
  return value.toLocaleString(document.documentElement.lang, { maximumSignificantDigits: size >= 1000 ? 6 : 4 }).replace("-", "\u2212");
}

// A comma between the ends would look like a decimal one where the language writes decimals with it.
const interval = (low, high) => `[${number(low)}${number(0.5).includes(",") ? ";" : ","} ${number(high)}]`;

// At most about `most` points that look the same: the lowest and the highest of each stretch of x, as the server does it.
function thinned(points, most) {
  if (points.length <= most) return points;
  const first = points[0][0], last = points[points.length - 1][0];
  const width = (last - first) / Math.max(1, most / 2 - 1) || 1;
  const kept = [];
  let lowest = points[0], highest = points[0], place = 0;
  const keep = () => {
    if (lowest === highest) kept.push(lowest);
    else kept.push(...(lowest[0] < highest[0] ? [lowest, highest] : [highest, lowest]));
  };
  for (const point of points) {
    const its = Math.floor((point[0] - first) / width);
    if (its !== place) { keep(); lowest = highest = point; place = its; }
    else if (point[1] < lowest[1]) lowest = point;
    else if (point[1] > highest[1]) highest = point;
  }
  keep();
  if (kept[0] !== points[0]) kept.unshift(points[0]);
  if (kept[kept.length - 1] !== points[points.length - 1]) kept.push(points[points.length - 1]);
  return kept;
}

// The mean around each point, with weights that fall exponentially to both sides, so that nothing lags behind. How far it
// looks is a share of all of x: the same however densely the points lie.
function smoothed(points, strength) {
  const reach = (points[points.length - 1][0] - points[0][0]) * 0.03 * strength ** 2;
  const sums = points.map(([, y]) => [-y, -1]); // each point is met on both ways, and counts once
  const walk = (places) => {
    let sum = 0, weight = 0, before = points[places[0]][0];
    for (const place of places) {
      const [x, y] = points[place], kept = Math.exp(-Math.abs(x - before) / reach);
      sum = kept * sum + y;
      weight = kept * weight + 1;
      before = x;
      sums[place][0] += sum;
      sums[place][1] += weight;
    }
  };
  const places = [...points.keys()];
  walk(places);
  walk(places.reverse());
  return points.map(([x], place) => [x, sums[place][0] / sums[place][1]]);
}

// How the steps of a run are shown: as they are, as epochs, or as time since its start. Between two samples of the clock
// time passes evenly; before the first and after the last a step keeps its distance.
const hasAxes = (spec) => spec.group === RUN_GROUP; // all of them are over steps, whatever the page's language calls them
const stepsPerEpoch = () => Number(document.querySelector("[data-steps-per-epoch]")?.dataset.stepsPerEpoch) || 0;
const isHours = () => clock.length > 0 && clock[clock.length - 1][1] >= 2 * 3600;

function secondsAt(step) {
  if (clock.length < 2) return clock.length ? clock[0][1] : 0;
  let low = 1, high = clock.length - 1; // the first sample at or after the step, from the second on
  while (low < high) {
    const middle = (low + high) >> 1;
    if (clock[middle][0] >= step) high = middle;
    else low = middle + 1;
  }
  const [fromStep, from] = clock[low - 1], [toStep, to] = clock[low];
  return Math.max(0, from + ((step - fromStep) * (to - from)) / Math.max(1e-9, toStep - fromStep));
}

function shownX(spec, step) {
  if (!hasAxes(spec) || axisName === "step") return step;
  return axisName === "epoch" ? step / stepsPerEpoch() : secondsAt(step) / (isHours() ? 3600 : 60);
}

function shownPoints(spec, points) {
  return hasAxes(spec) && axisName !== "step" ? points.map(([step, ...rest]) => [shownX(spec, step), ...rest]) : points;
}

function xNames(spec) {
  if (!hasAxes(spec) || axisName === "step") return [spec.x.name, spec.x_title];
  const { t } = Luthier;
  return axisName === "epoch" ? ["epoch", t("epoch")] : isHours() ? ["hour", t("hours since the start")] : ["minute", t("minutes since the start")];
}

// The last point at or before x.
function pointAt(points, x) {
  return points.findLast((point) => point[0] <= x);
}

// What an axis spans, as the server's drawing does it: all values, the ends that must be seen (`low`, `high`), and no
// margin where the value cannot be (`least`, `most`). Without any of these ECharts chooses round numbers.
function bounds({ low, high, least, most }) {
  const near = (value, end, { min, max }) => (end !== null && Math.abs(value - end) < 0.3 * (max - min) ? end : null);
  return {
    min: low === null && least === null ? undefined : (of) => (low !== null ? Math.min(low, of.min) : near(of.min, least, of)),
    max: high === null && most === null ? undefined : (of) => (high !== null ? Math.max(high, of.max) : near(of.max, most, of)),
  };
}

function common(spec) {
  const muted = colour("muted"), rule = colour("rule");
  const axis = (title, part, isUp, scale) => ({
    type: scale === "log" ? "log" : "value", name: title, nameLocation: "middle", nameGap: isUp ? 46 : 28, scale: true,
    ...bounds(part), inverse: part.is_reversed, show: part.is_shown,
    nameTextStyle: { color: muted }, axisLabel: { color: muted, hideOverlap: true, ...(part.ticks.length
      ? { customValues: part.ticks.map(([value]) => value), formatter: (value) => new Map(part.ticks).get(value) ?? "" } : { formatter: number }) },
    axisLine: { lineStyle: { color: rule } }, axisTick: { show: false }, splitLine: { lineStyle: { color: rule } },
  });
  return {
    axis, muted, rule,
    base: {
      animation: !matchMedia("(prefers-reduced-motion: reduce)").matches && !spec.group, animationDuration: 250,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 12 },
      aria: { enabled: true, label: { description: spec.title } },
      tooltip: {
        renderMode: "richText", confine: true, backgroundColor: colour("card"), borderColor: colour("edge"),
        textStyle: { color: colour("ink"), fontSize: 12 },
      },
    },
  };
}

// The intervals of a series: whiskers of dots, of a line a band (an invisible line at its foot, the rest stacked on it).
function band(series) {
  const shown = colour(series.role), ends = series.points.map(([x], n) => [x, ...series.intervals[n]]);
  if (series.shape === "dots") {
    return [{ type: "custom", silent: true, encode: { x: 0, y: [1, 2] }, data: ends, renderItem: (_, api) => {
      const [low, high] = [1, 2].map((n) => api.coord([api.value(0), api.value(n)]));
      return { type: "line", shape: { x1: low[0], y1: low[1], x2: high[0], y2: high[1] }, style: { stroke: shown, lineWidth: 1.6, opacity: 0.6 } };
    } }];
  }
  const part = (height, area) => ({
    type: "line", stack: `${series.name} ${series.role} interval`, stackStrategy: "all", silent: true, showSymbol: false, lineStyle: { opacity: 0 }, areaStyle: area,
    data: ends.map(([x, low, high]) => [x, height(low, high)]), tooltip: { show: false },
  });
  return [part((low) => low, undefined), part((low, high) => high - low, { color: shown, opacity: 0.17 })];
}

// The lines of a plot: as they are, or, where they are smoothed, faintly with the smooth ones over them.
function lines(entry) {
  const { spec, smoothing, isLog } = entry;
  const shown = (points) => shownPoints(spec, isLog ? points.filter((point) => point[1] > 0) : points);
  const marks = spec.marks.map((mark) => ({
    [mark.axis === "y" ? "yAxis" : "xAxis"]: mark.axis === "y" ? mark.x : shownX(spec, mark.x), label: { formatter: mark.name, position: "insideEndTop", color: colour(mark.role) },
    lineStyle: { color: colour(mark.role), type: mark.is_dashed ? "dashed" : "solid" },
  }));
  return spec.series.flatMap((series, n) => {
    const points = shown(series.points), isSmooth = smoothing > 0 && points.length >= FEWEST_SMOOTHED, isDots = series.shape === "dots";
    const drawn = {
      id: `${n} ${series.name}`, name: series.name, type: isDots ? "scatter" : "line", step: ["steps", "columns"].includes(series.shape) ? "end" : false, areaStyle: series.shape === "columns" ? { opacity: 0.85 } : undefined,
      data: points.map((point, i) => (series.labels[i] ? [...point, series.labels[i]] : point)),
      sampling: isDots ? undefined : "lttb", large: isDots, showSymbol: points.length === 1, symbolSize: isDots ? 8 : 5, color: colour(series.role),
      symbol: series.mark === "square" ? "rect" : series.mark, itemStyle: series.is_open ? { color: "transparent", borderColor: colour(series.role) } : {},
      lineStyle: { width: isSmooth || series.is_faint ? 1 : 1.8, opacity: isSmooth ? 0.3 : series.is_faint ? 0.45 : 1, type: series.is_dashed ? "dashed" : "solid" }, silent: isSmooth, emphasis: { disabled: true },
      markLine: n ? undefined : { silent: true, symbol: "none", animation: false, data: marks },
      markArea: n || !spec.spans.length ? undefined : {
        silent: true, animation: false, data: spec.spans.map((span) => [{ xAxis: span.low, itemStyle: { color: colour(span.role), opacity: 0.2 } }, { xAxis: span.high }]),
      },
      markPoint: n || !spec.notes.length ? undefined : {
        silent: true, animation: false, symbol: "circle",
        data: spec.notes.map((note) => ({
          coord: [note.x, note.y], symbolSize: note.is_ringed ? 14 : 0.1, itemStyle: { color: "transparent", borderColor: colour(note.role) },
          label: { formatter: note.text, color: colour(note.role), position: note.below ? "bottom" : "top" },
        })),
      },
    };
    const ranges = series.intervals.length && !isLog ? band(series) : [];
    if (!isSmooth) return [...ranges, drawn];
    const smooth = { ...drawn, id: `${n} ${series.name} smoothed`, data: smoothed(points, smoothing), lineStyle: { width: 2 }, silent: false, markLine: undefined };
    return [...ranges, drawn, smooth];
  });
}

function plot(entry) {
  const { spec } = entry;
  const { axis, base, muted } = common(spec), [xName, xTitle] = xNames(spec);
  return {
    ...base,
    grid: { left: 62, right: 16, top: spec.series.length > 1 && !entry.hidden ? 34 : 14, bottom: 44 },
    legend: { show: spec.series.length > 1 && !entry.hidden, selected: Object.fromEntries([...(entry.hidden ?? [])].map((name) => [name, false])), top: 0, left: 0, type: "scroll", textStyle: { color: muted }, itemWidth: 14, itemHeight: 8, data: spec.series.map((series) => series.name).filter(Boolean), formatter: (name) => spec.series.find((series) => series.name === name).shown || name },
    xAxis: { ...axis(xTitle, spec.x, false, spec.x.scale), splitLine: { show: false }, ...(spec.group ? { max: "dataMax" } : {}) },
    yAxis: axis(spec.y_title, spec.y, true, entry.isLog ? "log" : spec.y.scale),
    dataZoom: [{ type: "inside", xAxisIndex: 0, filterMode: "none", zoomOnMouseWheel: "shift", moveOnMouseWheel: false, ...entry.zoom }],
    tooltip: {
      ...base.tooltip, trigger: spec.series.some((s) => s.shape === "dots") ? "item" : "axis",
      axisPointer: { animation: false, lineStyle: { color: muted } },
      formatter: (found) => {
        const all = Array.isArray(found) ? found : [found];
        const x = all[0].value[0], named = new Map(all.map((one) => [one.seriesName, one.value])); // of a smoothed line, the smooth
        if (all[0].value[2]) return `${xName} ${number(x)}\n${all[0].value[2]}: ${number(all[0].value[1])} ${spec.y.unit}`;
        const lines = spec.series.filter((series) => (series.name || spec.series.length === 1) && !entry.hidden?.has(series.name)).flatMap((series) => {
          const point = named.get(series.name) ?? pointAt(shownPoints(spec, series.points), x);
          const where = point && point[0] !== x ? ` (${xName} ${number(point[0])})` : "";
          return point ? [`${series.shown || series.name || spec.title}: ${number(point[1])} ${spec.y.unit}${where}`] : [];
        });
        const more = lines.length - MOST_NAMED;
        return [`${xName} ${number(x)}`, ...lines.slice(0, MOST_NAMED), ...(more > 0 ? [Luthier.t("{count} more", { count: more })] : [])].join("\n");
      },
    },
    series: lines(entry),
  };
}

function rows(spec, series, right = 24) { // right: pixels for words behind the longest bar
  const { axis, base, muted } = common(spec);
  return {
    ...base,
    grid: { left: 8, right, top: 8, bottom: 40, containLabel: true },
    xAxis: { ...axis(spec.x_title, spec.x, false, spec.x.scale), min: spec.ends[0], max: spec.ends[1] },
    yAxis: {
      type: "category", inverse: true, data: spec.rows.map((row) => row.name), axisTick: { show: false },
      axisLine: { show: false }, axisLabel: { color: colour("ink"), width: 150, overflow: "truncate" },
    },
    series: series(base, muted),
  };
}

const limitLine = ({ x, name }, muted) => ({
  silent: true, symbol: "none", lineStyle: { color: muted, type: "dashed" }, data: [{ xAxis: x, label: { show: name !== "", formatter: name, color: muted } }],
});

function intervals({ spec }) {
  return rows(spec, (base, muted) => [{
    type: "custom", encode: { x: [1, 2, 3], y: 0 }, data: spec.rows.map((row, n) => [n, row.value, row.low, row.high]),
    tooltip: { ...base.tooltip, formatter: ({ value }) => `${spec.rows[value[0]].name}\n${number(value[1])} ${interval(value[2], value[3])} ${spec.x.unit}` },
    renderItem: (_, api) => {
      const row = api.value(0), at = (value) => api.coord([value, row]);
      const [low, middle, high] = [at(api.value(2)), at(api.value(1)), at(api.value(3))];
      const shown = colour(spec.rows[row].role);
      const whisker = { type: "line", shape: { x1: low[0], y1: low[1], x2: high[0], y2: high[1] }, style: { stroke: shown, lineWidth: 3 } };
      return { type: "group", children: [whisker, { type: "circle", shape: { cx: middle[0], cy: middle[1], r: 5 }, style: { fill: shown } }] };
    },
    markLine: spec.limit ? limitLine(spec.limit, muted) : spec.zero ? limitLine({ x: 0, name: "" }, muted) : undefined,
  }]);
}

function bars({ spec }) {
  const wordsOf = (row) => row.words || number(row.value), longest = Math.max(...spec.rows.map((row) => wordsOf(row).length));
  return rows(spec, (base, muted) => [{
    type: "bar", barMaxWidth: 20, data: spec.rows.map((row) => ({ value: row.value, itemStyle: { color: colour(row.role) } })),
    tooltip: { ...base.tooltip, formatter: ({ dataIndex, value }) => `${spec.rows[dataIndex].name}\n${spec.rows[dataIndex].words || `${number(value)} ${spec.x.unit}`}` },
    label: { show: true, position: "right", color: muted, formatter: ({ dataIndex }) => (spec.rows[dataIndex].interval ? "" : wordsOf(spec.rows[dataIndex])) },
    markLine: spec.limit ? limitLine(spec.limit, muted) : undefined,
  }, { // intervals; their words are behind them, since they reach further than the bar
    type: "custom", silent: true, z: 3, encode: { x: [1, 2], y: 0 }, data: spec.rows.flatMap((row, n) => (row.interval ? [[n, ...row.interval]] : [])),
    renderItem: (_, api) => {
      const n = api.value(0), [[x1, y1], [x2, y2]] = [1, 2].map((end) => api.coord([api.value(end), n]));
      const text = { text: wordsOf(spec.rows[n]), fill: muted, x: x2 + 5, y: y2, verticalAlign: "middle", fontSize: 12 };
      return { type: "group", children: [{ type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: colour("ink"), lineWidth: 1.4 } }, { type: "text", style: text }] };
    },
  }], Math.min(150, 16 + 6.7 * longest));
}

// A line for each thing over columns that each have a scale of their own; a stretch of a column that is dragged over
// keeps only the lines that go through it.
function parallel({ spec }) {
  const { base, muted, rule } = common(spec);
  return {
    ...base, animation: false,
    parallel: { left: 30, right: 64, top: 84, bottom: 30 },
    parallelAxis: spec.columns.map((column, n) => ({
      dim: n, name: column.name, type: "value", min: 0, max: 1, interval: 1, nameRotate: 24, nameGap: 22,
      nameTextStyle: { color: colour("ink"), align: "left" }, axisTick: { show: false }, axisLine: { lineStyle: { color: rule } },
      axisLabel: { color: muted, backgroundColor: colour("card"), padding: [1, 3], formatter: (value) => (value ? column.high : column.low) }, z: 10,
    })),
    series: [{
      type: "parallel", smooth: false, inactiveOpacity: 0.06,
      tooltip: { ...base.tooltip, formatter: ({ dataIndex }) => `${spec.lines[dataIndex].name}\n${spec.lines[dataIndex].words}` },
      data: spec.lines.map((line) => ({
        name: line.name, value: line.heights.map((height) => height ?? "-"),
        lineStyle: { color: colour(line.role), width: line.role === "quiet" ? 1 : 2, opacity: line.role === "quiet" ? 0.5 : 0.9 },
      })),
    }],
  };
}

// A cell for each pair of a row and a column, the stronger the larger its share.
function matrix({ spec }) {
  const { base, muted } = common(spec), shown = colour(spec.role);
  const names = (title, data, inverse) => ({
    type: "category", name: title, nameLocation: "middle", nameGap: 34, data, inverse, nameTextStyle: { color: muted },
    axisTick: { show: false }, axisLine: { show: false }, axisLabel: { color: muted },
  });
  return {
    ...base, grid: { left: 24, right: 8, top: 8, bottom: 34, containLabel: true },
    xAxis: names(spec.x_title, spec.columns, false), yAxis: names(spec.y_title, spec.rows, true),
    series: [{
      type: "custom", encode: { x: 0, y: 1 },
      data: spec.cells.flatMap((row, y) => row.flatMap((cell, x) => (cell ? [[x, y, cell.share, cell.words]] : []))),
      tooltip: { ...base.tooltip, formatter: ({ value }) => `${spec.rows[value[1]]}, ${spec.columns[value[0]]}: ${value[3]}` },
      renderItem: (_, api) => {
        const [x, y] = api.coord([api.value(0), api.value(1)]), [width, height] = api.size([1, 1]).map((size) => size - 2);
        const text = { text: String(api.value(3)), fill: colour("ink"), x, y, align: "center", verticalAlign: "middle", fontSize: 12 };
        const box = { type: "rect", shape: { x: x - width / 2, y: y - height / 2, width, height }, style: { fill: shown, opacity: 0.65 * api.value(2) } };
        return { type: "group", children: [box, { type: "text", style: text }] };
      },
    }],
  };
}

const kinds = { plot, intervals, bars, parallel, matrix };

function draw(entry) {
  entry.isStale = false;
  entry.chart.setOption(kinds[entry.spec.kind](entry), { notMerge: true });
}

// Only the lines: axes, legend and where a reader has zoomed to stay.
function update(entry) {
  entry.isStale = false;
  entry.chart.setOption({ series: lines(entry) }, { lazyUpdate: true });
}

// A slider that smooths and a switch for the logarithm, kept for all plots of a browser by their key.
function addTools(entry) {
  const { figure, spec } = entry, kept = `luthier-plot-${spec.key}`;
  try { Object.assign(entry, JSON.parse(localStorage.getItem(kept) ?? "{}")); } catch { /* as they are, then */ }
  const bar = document.createElement("div"), label = document.createElement("label"), slider = document.createElement("input");
  const button = document.createElement("button");
  bar.className = "tools";
  label.append(`${Luthier.t("smooth")} `);
  Object.assign(slider, { type: "range", min: "0", max: "1", step: "0.02", value: String(entry.smoothing) });
  slider.setAttribute("aria-label", Luthier.t("smooth the lines of {title}", { title: spec.title }));
  Object.assign(button, { type: "button", textContent: "log" });
  button.setAttribute("aria-label", Luthier.t("log scale for {title}", { title: spec.title }));
  button.setAttribute("aria-pressed", String(entry.isLog));
  const keep = () => {
    try { localStorage.setItem(kept, JSON.stringify({ smoothing: entry.smoothing, isLog: entry.isLog })); } catch { /* for now only */ }
    draw(entry);
  };
  slider.addEventListener("input", () => { entry.smoothing = Number(slider.value); keep(); });
  button.addEventListener("click", () => { entry.isLog = !entry.isLog; button.setAttribute("aria-pressed", String(entry.isLog)); keep(); });
  label.append(slider);
  bar.append(label, button);
  figure.querySelector("h3").after(bar);
}

// What a table has beside each step of a run: its epoch and its time, as far as they are known.
const columnsOfStep = (spec) => () => {
  if (!hasAxes(spec)) return [];
  const epoch = ["epoch", (step) => step / stepsPerEpoch()], seconds = ["seconds", secondsAt];
  return [...(stepsPerEpoch() ? [epoch] : []), ...(clock.length > 1 ? [seconds] : [])];
};

function start(figure) {
  const spec = JSON.parse(figure.dataset.chart);
  const canvas = document.createElement("div");
  canvas.className = "canvas";
  if (spec.rows && spec.kind !== "matrix") canvas.style.height = `${Math.max(110, 60 + 32 * spec.rows.length)}px`;
  figure.querySelector(".drawn, .no-chart")?.after(canvas);
  figure.querySelector(".no-chart")?.toggleAttribute("hidden", true);
  figure.querySelector(".legend")?.toggleAttribute("hidden", true);
  figure.classList.add("live-drawn");
  charts.get(spec.key)?.chart.dispose();
  const entry = { figure, spec, chart: window.echarts.init(canvas), isSeen: true, smoothing: 0, isLog: false };
  charts.set(spec.key, entry);
  if (spec.tools) addTools(entry);
  if (spec.kind === "plot" && spec.series.length > MOST_IN_LEGEND) window.Luthier.addChartLegend?.(entry, () => draw(entry));
  if (spec.kind === "plot") window.Luthier.addChartActions?.(entry, { colour, columnsOfStep: columnsOfStep(spec) });
  draw(entry);
  if (spec.group) {
    entry.chart.group = spec.group;
    window.echarts.connect(spec.group);
  }
  new ResizeObserver(() => entry.chart.resize()).observe(canvas);
  new IntersectionObserver(([seen]) => {
    entry.isSeen = seen.isIntersecting;
    if (entry.isSeen && entry.isStale) update(entry);
  }, { rootMargin: "200px" }).observe(canvas);
}

function startAll(within) {
  if (!window.echarts) return;
  for (const [key, entry] of charts) {
    if (!entry.figure.isConnected) { entry.chart.dispose(); charts.delete(key); }
  }
  for (const figure of within.querySelectorAll("figure.chart[data-chart]:not(.live-drawn)")) start(figure);
  for (const one of document.querySelectorAll("[data-needs-script]")) one.hidden = false;
  showAxes();
}

function change(key, name, points, isAll) {
  const entry = charts.get(key), series = entry?.spec.series.find((one) => one.name === name);
  if (!series || (!points.length && !isAll)) return;
  if (isAll) series.points = points;
  else {
    while (series.points.length && series.points[series.points.length - 1][0] >= points[0][0]) series.points.pop();
    series.points.push(...points);
  }
  if (series.points.length > MOST_POINTS) series.points = thinned(series.points, MOST_POINTS / 2);
  entry.isStale = true;
}

window.Luthier = window.Luthier ?? {};
window.Luthier.charts = {
  startAll,
  append: (key, name, points) => change(key, name, points, false),
  replace: (key, name, points) => change(key, name, points, true),
  forgetAfter(x) {
    clock = clock.filter((point) => point[0] <= x);
    for (const entry of charts.values()) {
      if (entry.spec.kind !== "plot") continue;
      for (const series of entry.spec.series) series.points = series.points.filter((point) => point[0] <= x);
      entry.isStale = true;
    }
  },
  mark(key, marks) {
    const entry = charts.get(key), whole = marks.map(({ x, name }) => ({ x, name, axis: "x", role: "muted", is_dashed: true }));
    if (!entry || JSON.stringify(entry.spec.marks) === JSON.stringify(whole)) return;
    entry.spec.marks = whole;
    entry.isStale = true;
  },
  clock(points, isAll) {
    if (isAll) clock = points;
    else {
      while (clock.length && points.length && clock[clock.length - 1][0] >= points[0][0]) clock.pop();
      clock.push(...points);
    }
    if (clock.length > MOST_POINTS) clock = thinned(clock, MOST_POINTS / 2);
    showAxes();
    if (points.length && axisName === "time") for (const entry of charts.values()) entry.isStale ||= hasAxes(entry.spec);
  },
  refresh() {
    for (const entry of charts.values()) if (entry.isStale && entry.isSeen) update(entry);
  },
};

// The switch of the horizontal axis: kept for the browser, without what this run has not.
function showAxes() {
  const choice = document.querySelector("[data-chart-axis]");
  if (!choice) return;
  const has = { step: true, epoch: stepsPerEpoch() > 0, time: clock.length > 1 };
  for (const option of choice.options) option.disabled = !has[option.value];
  let kept = "step";
  try { kept = localStorage.getItem("luthier-chart-axis") ?? "step"; } catch { /* the step, then */ }
  const wanted = has[kept] ? kept : "step";
  choice.value = wanted;
  if (wanted !== axisName) setAxis(wanted);
}

function setAxis(name) {
  axisName = name;
  for (const entry of charts.values()) if (hasAxes(entry.spec)) { entry.zoom = undefined; draw(entry); }
}

document.addEventListener("change", (event) => {
  if (!event.target.matches?.("[data-chart-axis]")) return;
  try { localStorage.setItem("luthier-chart-axis", event.target.value); } catch { /* for this page only, then */ }
  setAxis(event.target.value);
});

const drawAll = () => { colours.clear(); for (const entry of charts.values()) draw(entry); };
// ECharts is large: it comes once the page, with the server's own drawings, has been painted.
function afterPaint() {
  return new Promise((done) => {
    requestAnimationFrame(() => setTimeout(done));
    setTimeout(done, 300); // a tab that is not looked at is not painted
  });
}

function load(address) {
  return new Promise((done) => {
    const script = document.createElement("script");
    Object.assign(script, { src: address, onload: done, onerror: done });
    document.head.append(script);
  });
}

window.Luthier.charts.ready = afterPaint()
  .then(() => load(document.querySelector("script[data-echarts]").dataset.echarts))
  .then(() => startAll(document));
document.addEventListener("htmx:afterSettle", () => startAll(document));
document.addEventListener("luthier:theme", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
