// Draws `figure.chart[data-chart]` with ECharts over the server's own drawing, in the colours of the page.
// `window.Luthier.charts.append(key, name, points)` adds to a plot that is being watched.
const charts = new Map(); // by key: { figure, spec, chart }

function colour(name) {
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
  if (size && (size >= 1e6 || size < 1e-4)) return value.toPrecision(3).replace("-", "\u2212");
  return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 6 : 4 }).replace("-", "\u2212");
}

function common(spec) {
  const muted = colour("muted"), rule = colour("rule");
  const axis = (title, part, isUp) => ({
    type: part.scale === "log" ? "log" : "value", name: title, nameLocation: "middle", nameGap: isUp ? 46 : 28, scale: true,
    min: part.low ?? undefined, max: part.high ?? undefined,
    nameTextStyle: { color: muted }, axisLabel: { color: muted, formatter: number, hideOverlap: true },
    axisLine: { lineStyle: { color: rule } }, axisTick: { show: false }, splitLine: { lineStyle: { color: rule } },
  });
  return {
    axis, muted, rule,
    base: {
      animation: !matchMedia("(prefers-reduced-motion: reduce)").matches && !spec.live, animationDuration: 250,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 12 },
      aria: { enabled: true, label: { description: spec.title } },
      tooltip: {
        renderMode: "richText", confine: true, backgroundColor: colour("card"), borderColor: colour("edge"),
        textStyle: { color: colour("ink"), fontSize: 12 },
      },
    },
  };
}

function plot(spec) {
  const { axis, base, muted } = common(spec);
  const marks = spec.marks.map((mark) => ({ xAxis: mark.x, label: { formatter: mark.name, color: muted, position: "insideEndTop" } }));
  return {
    ...base,
    grid: { left: 62, right: 16, top: spec.series.length > 1 ? 34 : 14, bottom: 44 },
    legend: { show: spec.series.length > 1, top: 0, left: 0, textStyle: { color: muted }, itemWidth: 14, itemHeight: 8 },
    xAxis: { ...axis(spec.x_title, spec.x, false), splitLine: { show: false } },
    yAxis: axis(spec.y_title, spec.y, true),
    dataZoom: [{ type: "inside", xAxisIndex: 0, filterMode: "none", zoomOnMouseWheel: "shift" }],
    tooltip: {
      ...base.tooltip, trigger: spec.series.some((s) => s.shape === "dots") ? "item" : "axis",
      formatter: (found) => {
        const all = Array.isArray(found) ? found : [found];
        const head = `${spec.x.name} ${number(all[0].value[0])}`;
        return [head, ...all.map((one) => `${one.value[2] ? `${one.value[2]}: ` : `${one.seriesName}: `}${number(one.value[1])} ${spec.y.unit}`)].join("\n");
      },
    },
    series: spec.series.map((series, n) => ({
      name: series.name, type: series.shape === "dots" ? "scatter" : "line", step: series.shape === "steps" ? "end" : false,
      data: series.points.map((point, i) => (series.labels[i] ? [...point, series.labels[i]] : point)),
      showSymbol: series.points.length === 1, symbolSize: series.shape === "dots" ? 8 : 5, sampling: "lttb", large: true,
      color: colour(series.role), lineStyle: { width: 1.8 },
      markLine: n || !marks.length ? undefined : { silent: true, symbol: "none", lineStyle: { color: muted, type: "dashed" }, data: marks },
    })),
  };
}

function rows(spec, series) {
  const { axis, base, muted } = common(spec);
  return {
    ...base,
    grid: { left: 8, right: 24, top: 8, bottom: 40, containLabel: true },
    xAxis: axis(spec.x_title, spec.x, false),
    yAxis: {
      type: "category", inverse: true, data: spec.rows.map((row) => row.name), axisTick: { show: false },
      axisLine: { show: false }, axisLabel: { color: colour("ink"), width: 150, overflow: "truncate" },
    },
    series: series(base, muted),
  };
}

function intervals(spec) {
  return rows(spec, (base, muted) => [{
    type: "custom", encode: { x: [1, 2, 3], y: 0 },
    data: spec.rows.map((row, n) => [n, row.value, row.low, row.high]),
    tooltip: { ...base.tooltip, formatter: ({ value }) => `${spec.rows[value[0]].name}\n${number(value[1])} [${number(value[2])}, ${number(value[3])}] ${spec.x.unit}` },
    renderItem: (_, api) => {
      const row = api.value(0), at = (value) => api.coord([value, row]);
      const [low, middle, high] = [at(api.value(2)), at(api.value(1)), at(api.value(3))];
      const shown = colour(spec.rows[row].role);
      return { type: "group", children: [
        { type: "line", shape: { x1: low[0], y1: low[1], x2: high[0], y2: high[1] }, style: { stroke: shown, lineWidth: 3 } },
        { type: "circle", shape: { cx: middle[0], cy: middle[1], r: 5 }, style: { fill: shown } },
      ] };
    },
    markLine: spec.zero ? { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: muted, type: "dashed" }, data: [{ xAxis: 0 }] } : undefined,
  }]);
}

function bars(spec) {
  return rows(spec, (base, muted) => [{
    type: "bar", barMaxWidth: 20,
    data: spec.rows.map((row) => ({ value: row.value, itemStyle: { color: colour(row.role) } })),
    tooltip: { ...base.tooltip, formatter: ({ dataIndex, value }) => `${spec.rows[dataIndex].name}\n${spec.rows[dataIndex].words || `${number(value)} ${spec.x.unit}`}` },
    label: { show: true, position: "right", color: muted, formatter: ({ dataIndex, value }) => spec.rows[dataIndex].words || number(value) },
    markLine: spec.limit ? { silent: true, symbol: "none", lineStyle: { color: muted, type: "dashed" }, data: [{ xAxis: spec.limit.x, label: { formatter: spec.limit.name, color: muted } }] } : undefined,
  }]);
}

const kinds = { plot, intervals, bars };

function draw(entry) {
  entry.chart.setOption(kinds[entry.spec.kind](entry.spec), { notMerge: true });
}

function start(figure) {
  const spec = JSON.parse(figure.dataset.chart);
  const canvas = document.createElement("div");
  canvas.className = "canvas";
  if (spec.rows) canvas.style.height = `${Math.max(110, 60 + 32 * spec.rows.length)}px`;
  figure.querySelector(".drawn, .no-chart")?.after(canvas);
  figure.querySelector(".no-chart")?.toggleAttribute("hidden", true);
  figure.querySelector(".legend")?.toggleAttribute("hidden", true);
  figure.classList.add("live-drawn");
  const entry = { figure, spec, chart: window.echarts.init(canvas) };
  charts.set(spec.key, entry);
  draw(entry);
  new ResizeObserver(() => entry.chart.resize()).observe(canvas);
}

function startAll(within) {
  if (!window.echarts) return;
  for (const figure of within.querySelectorAll("figure.chart[data-chart]:not(.live-drawn)")) start(figure);
  for (const [key, entry] of charts) {
    if (!entry.figure.isConnected) { entry.chart.dispose(); charts.delete(key); }
  }
}

window.Luthier = window.Luthier ?? {};
window.Luthier.charts = {
  startAll,
  append(key, name, points) {
    const entry = charts.get(key), series = entry?.spec.series.find((one) => one.name === name);
    if (!series || !points.length) return;
    series.points.push(...points);
    entry.spec.live = true;
    entry.isStale = true;
  },
  refresh() {
    for (const entry of charts.values()) if (entry.isStale) { entry.isStale = false; draw(entry); }
  },
};

startAll(document);
document.addEventListener("htmx:afterSettle", (event) => startAll(event.target.parentElement ?? document));
document.addEventListener("luthier:theme", () => { for (const entry of charts.values()) draw(entry); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const entry of charts.values()) draw(entry); });
