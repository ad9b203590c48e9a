"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const byId = (id) => document.getElementById(id);
  const chosen = {};

  // Figures name colours by CSS variables, so that they fit the light and the dark page.
  function resolved(value, style) {
    if (typeof value === "string" && value.startsWith("--")) {
      const found = style.getPropertyValue(value).trim();
      return value === "--scale" || value === "--diverging" ? found.split(",").map((c, i, all) => [i / (all.length - 1), c.trim()]) : found;
    }
    if (Array.isArray(value)) return typeof value[0] === "object" || value.length < 3 ? value.map((v) => resolved(v, style)) : value;
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolved(v, style)]));
    return value;
  }

  function axis(own, style) {
    const grid = { gridcolor: "--grid", linecolor: "--line", zerolinecolor: "--edge", zerolinewidth: 1.3, automargin: true, ticks: "" };
    return resolved({ ...grid, ...own, title: own.title && { standoff: 10, font: { size: 12.5, color: "--muted" }, ...own.title } }, style);
  }

  // The key is HTML, so that it wraps on a phone and screen readers find it.
  const SHAPES = { circle: "M5,0A5,5 0 1 1 -5,0A5,5 0 1 1 5,0Z", diamond: "M0,-6L6,0L0,6L-6,0Z", square: "M-5,-5H5V5H-5Z", line: "M0,-6V6",
    star: "M0,-8L2.2,-2.6L8,-2.5L3.5,1.2L5,7L0,3.8L-5,7L-3.5,1.2L-8,-2.5L-2.2,-2.6Z" };
  function key(box, traces) {
    box.replaceChildren(...traces.filter((t) => t.type === "scatter" && t.showlegend !== false).map((t) => {
      const entry = document.createElement("li"), marked = t.mode === "markers", look = marked ? t.marker : t.line;
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), path = document.createElementNS(svg.namespaceURI, "path");
      const [shape] = (look.symbol || "circle").split("-"), open = /-open$/.test(look.symbol || "") || shape === "line";
      const attributes = { d: marked ? SHAPES[shape] : "M-12,0H12", stroke: look.color, fill: marked && !open ? look.color : "none",
        "stroke-width": marked ? 1.5 : look.width || 2, "stroke-dasharray": look.dash === "dot" ? "2 3" : "none" };
      for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, value);
      svg.setAttribute("viewBox", marked ? "-9 -9 18 18" : "-13 -9 26 18");
      svg.setAttribute("aria-hidden", "true");
      svg.append(path);
      entry.append(svg, t.name);
      return entry;
    }));
  }

  function draw(chart) {
    const box = byId("chart-" + chart.id), style = getComputedStyle(document.documentElement);
    const variant = chart.variants.find((v) => v.key === chosen[chart.id]) || chart.variants[0];
    const width = Math.max(box.parentElement.clientWidth, chart.scroll), narrow = width < 560;
    const layout = {
      height: chart.height, width, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: narrow ? 40 : 56, r: 14, t: 12, b: 36 }, dragmode: narrow ? false : "zoom",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: style.getPropertyValue("--muted").trim() },
      showlegend: false,
      hoverlabel: resolved({ bgcolor: "--card", bordercolor: "--line", align: "left", font: { color: "--ink", size: 12.5 } }, style),
      modebar: resolved({ bgcolor: "rgba(0,0,0,0)", color: "--edge", activecolor: "--champion" }, style),
      ...resolved(variant.layout, style),
    };
    for (const name of ["xaxis", "yaxis", "yaxis2"]) if (variant.layout[name]) layout[name] = axis(variant.layout[name], style);
    if (narrow && variant.layout.dragmode !== "pan") layout.dragmode = false;
    const config = { displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { filename: chart.id, scale: 2 }, displayModeBar: narrow ? false : "hover" };
    const traces = resolved([...variant.data, ...chart.shared], style);
    key(byId("key-" + chart.id), traces);
    Plotly.react(box, traces, layout, config);
  }

  function table(chart) {
    const out = document.createElement("table");
    const head = out.createTHead().insertRow();
    for (const name of chart.columns) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      head.append(cell);
    }
    const body = out.createTBody();
    for (const row of chart.rows) {
      const line = body.insertRow();
      row.forEach((value, i) => {
        const cell = document.createElement(i ? "td" : "th");
        if (!i) cell.scope = "row";
        if (typeof value === "number") cell.className = "n";
        cell.textContent = value === null ? "–" : value;
        line.append(cell);
      });
    }
    return out;
  }

  function csv(chart) {
    const safe = (v) => (typeof v === "string" && /^[=+@\t-]/.test(v) ? "'" + v : v); // a spreadsheet must not run it
    const cell = (v) => (v === null ? "" : /[",\n\r]/.test(String(v)) ? '"' + String(v).replaceAll('"', '""') + '"' : String(v));
    return [chart.columns, ...chart.rows].map((row) => row.map((v) => cell(safe(v))).join(",")).join("\r\n") + "\r\n";
  }

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  for (const chart of charts) {
    for (const button of document.querySelectorAll(`[data-chart="${chart.id}"] button[data-key]`)) {
      button.addEventListener("click", () => {
        chosen[chart.id] = button.dataset.key;
        for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
        draw(chart);
      });
    }
    const toggle = byId("toggle-" + chart.id), numbers = byId("numbers-" + chart.id);
    toggle.addEventListener("click", () => {
      if (!numbers.firstChild) numbers.append(table(chart));
      numbers.hidden = !numbers.hidden;
      toggle.setAttribute("aria-expanded", String(!numbers.hidden));
      toggle.textContent = numbers.hidden ? "Show the numbers" : "Hide the numbers";
    });
    byId("csv-" + chart.id).addEventListener("click", () => save(chart.id + ".csv", csv(chart)));
  }

  const drawn = new Set();
  const show = (chart) => { drawn.add(chart); draw(chart); };
  if ("IntersectionObserver" in window && charts.length > 2) {
    const seen = new IntersectionObserver((items) => {
      for (const item of items.filter((i) => i.isIntersecting)) {
        seen.unobserve(item.target);
        show(charts.find((c) => "chart-" + c.id === item.target.id));
      }
    }, { rootMargin: "600px" });
    charts.forEach((chart) => seen.observe(byId("chart-" + chart.id)));
    addEventListener("beforeprint", () => charts.filter((c) => !drawn.has(c)).forEach(show));
  } else charts.forEach(show);
  const redraw = () => drawn.forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = document.body.clientWidth, waiting; // on a phone, scrolling changes the height only
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 120);
  }).observe(document.body);

  const filter = byId("filter");
  if (filter) {
    filter.addEventListener("change", () => {
      for (const row of document.querySelectorAll("#rounds tbody tr")) row.hidden = Boolean(filter.value) && row.dataset.status !== filter.value;
    });
  }
})();
