// Scatter plots of pixels by their features: the same pixels in each run.

const pixels = {};
// Points that a plot shows at most; of more, every second, third ... one of each class.
const MOST_POINTS = 6000;
const LISTED_PIXELS = 60;

const isWrong = (p) => pixels.predicted.some((predicted) => predicted[p] !== pixels.label[p]);

// The pixels of the plots: those of the filter, evenly thinned where they are too many.
function plottedPixels() {
  const found = [];
  for (let p = 0; p < data.pixels.count; p++) {
    const kept =
      !state.classes.size || isShown(pixels.label[p]) || pixels.predicted.some((predicted) => isShown(predicted[p]));
    if (kept && !(state.onlyWrong && !isWrong(p))) found.push(p);
  }
  if (found.length <= MOST_POINTS) return [found, found.length];
  const every = Math.ceil(found.length / MOST_POINTS),
    seen = new Map();
  return [
    found.filter((p) => {
      const n = seen.get(pixels.label[p]) || 0;
      seen.set(pixels.label[p], n + 1);
      return n % every === 0;
    }),
    found.length,
  ];
}

function drawScatter() {
  drawPlots();
  const labels = [...new Set(pixels.shown.map((p) => pixels.label[p]))].sort((a, b) => a - b);
  byId("pixel-classes").replaceChildren(...labels.map(classButton));
  listPixels();
}

function drawPlots() {
  const [shown, possible] = plottedPixels(),
    ink = themeColor("--ink"),
    card = themeColor("--card"),
    line = themeColor("--line"),
    edge = isDark() ? "rgb(255 255 255 / 0.6)" : card;
  pixels.shown = shown;
  const places = new Map(shown.map((p, i) => [p, i]));
  const chosen = state.brushed ? state.brushed.map((p) => places.get(p)).filter((i) => i !== undefined) : null;
  pixels.plots.forEach((plot, r) => {
    const { low, step } = data.pixels.projections[state.method].runs[r],
      positions = pixels.positions[state.method][r];
    const wrong = shown.map((p) => pixels.predicted[r][p] !== pixels.label[p]);
    const trace = {
      type: "scatter",
      mode: "markers",
      hoverinfo: "none",
      x: shown.map((p) => low[0] + step * positions[2 * p]),
      y: shown.map((p) => low[1] + step * positions[2 * p + 1]),
      marker: {
        color: shown.map((p) => rgb(pixels.label[p])),
        symbol: wrong.map((is) => (is ? "x" : "circle")),
        size: wrong.map((is) => (is ? 8 : 6)),
        line: { width: wrong.map((is) => (is ? 1 : 0.5)), color: wrong.map((is) => (is ? ink : edge)) },
        opacity: 0.9,
      },
      selectedpoints: chosen,
      unselected: { marker: { opacity: 0.08 } },
    };
    const axis = {
      showticklabels: false,
      zeroline: false,
      gridcolor: line,
      showline: true,
      linecolor: line,
      mirror: true,
    };
    const layout = {
      margin: { l: 6, r: 6, t: 34, b: 6 },
      paper_bgcolor: card,
      plot_bgcolor: card,
      font: { color: ink },
      dragmode: "lasso",
      hovermode: "closest",
      showlegend: false,
      xaxis: axis,
      yaxis: { ...axis, scaleanchor: "x" },
      uirevision: `${state.method}`,
      modebar: { bgcolor: card, color: ink },
      newselection: { line: { color: ink, width: 1.5 } },
      activeselection: { fillcolor: "transparent" },
      selections: state.brushed && plot === pixels.brushedIn ? plot.layout.selections : [],
    };
    Plotly.react(plot, [trace], layout, {
      displaylogo: false,
      responsive: true,
      modeBarButtons: [["lasso2d", "select2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
    });
  });
  byId("pixel-count").textContent =
    `${count(shown.length)} of ${count(possible)} pixels; circles are right, crosses wrong in that run`;
}

// The table behind the plots: what was drawn around, or else all that the plots show; mistakes first.
function listPixels() {
  const listed = state.brushed || pixels.shown,
    order = [...listed].sort((p, q) => isWrong(q) - isWrong(p) || pixels.image[p] - pixels.image[q] || p - q);
  byId("list-title").textContent =
    `${count(listed.length)} pixel${listed.length === 1 ? "" : "s"} ${state.brushed ? "chosen" : "in the plots"}, ${count(listed.filter(isWrong).length)} of them wrong in a run${listed.length > LISTED_PIXELS ? `; ${LISTED_PIXELS} are listed` : ""}`;
  byId("unbrush").hidden = !state.brushed;
  byId("pixel-list").tBodies[0].replaceChildren(
    ...order.slice(0, LISTED_PIXELS).map((p) => {
      const image = imageOf(p),
        where = [name(data.names[pixels.image[p]]), ` row ${pixels.y[p]}, column ${pixels.x[p]}`],
        crop = make("canvas", { width: 112, height: 84, "aria-hidden": "true" });
      if (image) drawCropLater(crop, image, p);
      const cell = image
        ? [crop, make("button", { type: "button", onclick: () => openPixel(p) }, ...where)]
        : [make("span", {}, ...where, " (image not on this page)")];
      return make(
        "tr",
        { "data-pixel": p },
        make("td", {}, ...cell),
        make("td", {}, classTag(pixels.label[p])),
        ...data.runs.map((_, r) => make("td", {}, verdict(p, r))),
      );
    }),
  );
}

const imageOf = (p) => data.images.find((image) => image.index === pixels.image[p]);
const drawCropLater = (canvas, image, p) =>
  image.element
    .decode()
    .then(() => drawCrop(canvas, image.element, image, pixels.y[p], pixels.x[p], image.size[1] / 14))
    .catch(trouble);
const verdict = (p, r) =>
  make(
    "span",
    { class: pixels.predicted[r][p] === pixels.label[p] ? "" : "worse" },
    pixels.predicted[r][p] === pixels.label[p] ? "✓ " : "✗ ",
    classTag(pixels.predicted[r][p]),
    ` ${Math.round(pixels.confidence[r][p] / 2.55)}\u00a0%`,
  );
const openPixel = (p) => goTo(pixels.image[p], { y: pixels.y[p], x: pixels.x[p] });

function showTip(event) {
  const p = pixels.shown[event.points[0].pointNumber],
    tip = byId("tip"),
    canvas = tip.querySelector("canvas"),
    image = imageOf(p);
  canvas.hidden = !image;
  if (image) drawCropLater(canvas, image, p);
  tip.lastElementChild.replaceChildren(
    name(data.names[pixels.image[p]]),
    make("br"),
    "label ",
    classTag(pixels.label[p]),
    ...data.runs.flatMap((_, r) => [make("br"), runTag(r), " ", verdict(p, r)]),
  );
  tip.hidden = false;
  tip.style.left = `${clamp(event.event.clientX + 16, 0, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${clamp(event.event.clientY + 16, 0, innerHeight - tip.offsetHeight - 8)}px`;
}

async function setUpScatter() {
  if (!data.pixels) return;
  for (const key of ["image", "y", "x", "label"]) pixels[key] = await unpack(data.pixels[key]);
  for (const key of ["predicted", "confidence"]) pixels[key] = await Promise.all(data.pixels[key].map(unpack));
  pixels.positions = await Promise.all(
    data.pixels.projections.map((projection) => Promise.all(projection.runs.map(unpack))),
  );
  pixels.plots = all("#pixels .plot");
  if (!data.pixels.projections.length) return;
  radios(
    byId("method"),
    data.pixels.projections.map((projection) => name(projection.method)),
    0,
    (i) => {
      state.method = i;
      state.brushed = null;
      drawScatter();
    },
  );
  byId("wrong").addEventListener("change", (event) => {
    state.onlyWrong = event.target.checked;
    state.brushed = null;
    drawScatter();
  });
  byId("unbrush").addEventListener("click", () => {
    state.brushed = null;
    drawScatter();
  });
  drawScatter();
  for (const plot of pixels.plots) {
    plot.on("plotly_hover", showTip);
    plot.on("plotly_unhover", () => {
      byId("tip").hidden = true;
    });
    plot.on("plotly_click", (event) => openPixel(pixels.shown[event.points[0].pointNumber]));
    plot.on("plotly_selected", (event) => {
      if (!event || !event.points) return;
      state.brushed = event.points.length ? event.points.map((point) => pixels.shown[point.pointNumber]) : null;
      pixels.brushedIn = plot;
      drawScatter();
    });
    plot.on("plotly_deselect", () => {
      state.brushed = null;
      drawScatter();
    });
    printAt(plot, 330);
  }
  on("classes", drawScatter);
  on("theme", drawPlots);
}
