"use strict";
const root = document.documentElement;
const page = JSON.parse(document.getElementById("page-data").textContent);
const each = (selector, act) => document.querySelectorAll(selector).forEach(act);

// Plotly needs colors, not variables: an element resolves them for the current theme.
const probe = document.body.appendChild(document.createElement("span"));
function css(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

function themed(layout) {
  const lines = {gridcolor: css("--grid"), linecolor: css("--line"), tickcolor: css("--line"), fixedrange: true};
  const axes = Object.keys(layout).filter(key => /^[xy]axis/.test(key)).map(key => [key, {...layout[key], ...lines}]);
  return {
    ...layout, ...Object.fromEntries(axes), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--soft")},
    hoverlabel: {bgcolor: css("--card"), bordercolor: css("--line"), font: {color: css("--ink")}, align: "left"},
  };
}

function draw() {
  return Promise.all(Object.entries(page.charts).map(([id, chart]) =>
    Plotly.react(`chart-${id}`, chart.data, themed(chart.layout), {displayModeBar: false, responsive: true})));
}

function choose(button) {
  const chosen = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.trial;
  each(".legend button", b => b.setAttribute("aria-pressed", String(chosen !== null && b.dataset.trial === chosen)));
  Object.values(page.charts).forEach(chart => chart.data.forEach(trace => {
    trace.full ??= trace.opacity ?? 1;
    if (trace.meta !== undefined) trace.opacity = chosen === null ? trace.full : trace.meta === chosen ? 1 : 0.12;
  }));
  draw();
}

function showSheet(number) {
  const sheet = page.sheets[number], image = document.getElementById("sheet"), rows = sheet.sizes.length + 2;
  const cell = page.sheet.cell;
  image.src = sheet.uri;
  image.width = cell * page.sheet.images;
  image.height = cell * rows;
  image.alt = `Row by row: ${page.sheet.images} images, their ${sheet.sizes.length} slots in color, and the input that `
    + `each slot masks, after epoch ${sheet.epoch}`;
  const labels = document.getElementById("sheet-labels");
  labels.style.gridTemplateRows = `repeat(${rows}, ${cell}px)`;
  const texts = ["images", "slots", ...sheet.sizes.map((size, k) => `slot ${k + 1}: ${(100 * size).toFixed(1)} %`)];
  labels.replaceChildren(...texts.map((text, row) => {
    const label = document.createElement("span");
    if (row > 1) {
      const swatch = label.appendChild(document.createElement("i"));
      swatch.className = "swatch";
      swatch.style.background = page.sheet.colors[row - 2];
    }
    label.append(text);
    return label;
  }));
  document.getElementById("sheet-text").textContent = `epoch ${sheet.epoch}, ${sheet.trial}, N = ${sheet.sizes.length}`;
}

function stepDecision(by) {
  const count = page.decisions.length;
  page.decision = ((page.decision ?? (by > 0 ? -1 : 0)) + by + count) % count;
  const decision = page.decisions[page.decision];
  document.getElementById("decision-text").textContent = `${page.decision + 1} of ${count}: ${decision.text}`;
  const chart = document.getElementById("chart-lineage");
  Plotly.Fx.hover(chart, [{curveNumber: chart.data.length - 1, pointNumber: decision.point}]);
}

// A picture of a sprite sheet as the background of an element.
function place(element, index) {
  const {uri, columns, count} = page.sprites, rows = Math.ceil(count / columns);
  element.style.backgroundImage = `url(${uri})`;
  element.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  const share = (at, of) => of > 1 ? 100 * at / (of - 1) : 0;
  element.style.backgroundPosition = `${share(index % columns, columns)}% ${share(Math.floor(index / columns), rows)}%`;
}

function watchMap() {
  const chart = document.getElementById("chart-map"), peek = document.createElement("div");
  peek.className = `peek tile${page.sprites.pixelated ? " pixelated" : ""}`;
  peek.hidden = true;
  document.body.append(peek);
  chart.on("plotly_hover", event => {
    const [image] = event.points[0].customdata, {clientX, clientY} = event.event ?? {clientX: 0, clientY: 0};
    place(peek, image);
    peek.style.left = `${Math.min(clientX + 14, innerWidth - 110)}px`;
    peek.style.top = `${Math.max(4, Math.min(clientY - 110, innerHeight - 110))}px`;
    peek.hidden = false;
  });
  chart.on("plotly_unhover", () => { peek.hidden = true; });
  document.getElementById("map-masked").addEventListener("click", event => {
    const shown = event.target.getAttribute("aria-pressed") !== "true";
    event.target.setAttribute("aria-pressed", String(shown));
    page.charts.map.data.forEach(trace => { if (trace.masked) trace.visible = shown; });
    draw();
  });
}

function nextTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme ?? (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  if (window.Plotly) draw();
}

async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), c => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function begin() {
  document.getElementById("theme").addEventListener("click", nextTheme);
  each("[data-tile]", element => place(element, Number(element.dataset.tile)));
  each("[data-copy]", button => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code);
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "copied"; }
    catch { button.textContent = "selected"; }  // a page from a file may not have the clipboard
  }));
  if (page.sheets?.length) {
    const slider = document.getElementById("mask-epoch");
    slider.addEventListener("input", () => showSheet(Number(slider.value)));
    showSheet(Number(slider.value));
  }
  if (Object.keys(page.charts).length) {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly-packed");
    document.head.append(script);
    await draw();
    each(".legend button", button => button.addEventListener("click", () => choose(button)));
    if (page.decisions?.length) {
      document.getElementById("decision-before").addEventListener("click", () => stepDecision(-1));
      document.getElementById("decision-after").addEventListener("click", () => stepDecision(1));
    }
    if (page.charts.map) watchMap();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }
  root.dataset.ready = "true";
}

begin();
