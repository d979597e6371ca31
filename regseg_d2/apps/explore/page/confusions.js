// The confusion matrix, the list of what is confused most, and the images where it happens.

const confusions = { counts: [], shares: [], pairs: [], shown: [] };
// As many classes have their names at the sides of the matrix; more are told by the pointer and the list.
const NAMED_CLASSES = 40;
// Behind a filter the matrix has these many classes more: those that the chosen ones are confused with most.
const NEIGHBOURS = 6;
const LISTED_PAIRS = 40;

const share = (r, a, b) => confusions.shares[r][a * K + b];
const wrongShare = (a, b) => Math.max(...data.runs.map((_, r) => share(r, a, b) || 0));

function setUpShares() {
  confusions.shares = confusions.counts.map((counts) => {
    const shares = new Float64Array(K * K);
    for (let a = 0; a < K; a++) {
      let total = 0;
      for (let b = 0; b < K; b++) total += counts[a * K + b];
      for (let b = 0; b < K; b++) shares[a * K + b] = total ? counts[a * K + b] / total : NaN;
    }
    return shares;
  });
}

// The classes of the matrix: all, or the chosen ones and those that they are confused with most.
function matrixClasses() {
  const present = data.classes
    .map((_, k) => k)
    .filter((k) =>
      confusions.counts.some((counts) => {
        for (let b = 0; b < K; b++) if (counts[k * K + b] || counts[b * K + k]) return true;
        return false;
      }),
    );
  if (!state.classes.size) return present;
  const near = (k) => Math.max(...[...state.classes].map((c) => wrongShare(k, c) + wrongShare(c, k)));
  const others = present
    .filter((k) => !state.classes.has(k) && near(k) > 0)
    .sort((a, b) => near(b) - near(a))
    .slice(0, NEIGHBOURS);
  return [...state.classes, ...others].sort((a, b) => a - b);
}

// What a field shows: the share of the label's pixels, or for a difference how much better it is than in the first run.
function fieldValue(a, b) {
  if (state.matrix < R) return share(state.matrix, a, b);
  const change = share(state.matrix - R + 1, a, b) - share(0, a, b);
  return a === b ? change : -change;
}

function matrixTitle() {
  return state.matrix < R ? [runTag(state.matrix)] : [runTag(state.matrix - R + 1), " against ", runTag(0)];
}

function drawMatrix() {
  const shown = (confusions.shown = matrixClasses()),
    difference = state.matrix >= R;
  const values = shown.map((a) => shown.map((b) => fieldValue(a, b)));
  // Small shares are what a reader looks for: colors follow the root.
  const root = (value) => Math.sign(value) * Math.sqrt(Math.abs(value));
  const largest = difference ? Math.max(0.02, ...values.flat().map(Math.abs).filter(Number.isFinite)) : 1;
  const steps = (difference ? [-1, -0.25, -0.04, 0, 0.04, 0.25, 1] : [0, 0.01, 0.05, 0.2, 0.5, 1]).map(
    (step) => step * largest,
  );
  const ink = themeColor("--ink"),
    card = themeColor("--card"),
    dark = isDark();
  const short = (k) =>
    data.classes[k].length > 16 ? `${[...data.classes[k]].slice(0, 15).join("")}…` : data.classes[k];
  const named = shown.length <= NAMED_CLASSES;
  const axis = {
    tickvals: named ? shown.map((_, i) => i) : [],
    ticktext: named ? shown.map((k) => plotText(short(k))) : [],
    showgrid: false,
    zeroline: false,
    fixedrange: true,
    color: ink,
    tickfont: { size: shown.length > 24 ? 9 : 11 },
  };
  const text = shown.map((a) => shown.map((b) => plotText(pairText(a, b)).replace(/\n/g, "<br>")));
  const trace = {
    type: "heatmap",
    z: values.map((row) => row.map(root)),
    text,
    hoverinfo: "text",
    xgap: shown.length > 60 ? 0 : 1,
    ygap: shown.length > 60 ? 0 : 1,
    zmin: difference ? -root(largest) : 0,
    zmax: root(largest),
    colorscale: difference
      ? [
          [0, dark ? "#ff9c7d" : "#a8391b"],
          [0.5, dark ? "#252a32" : "#f3f4f6"],
          [1, dark ? "#56c7b6" : "#0b6e63"],
        ]
      : [
          [0, dark ? "#20252d" : "#f3f6fa"],
          [0.35, dark ? "#2f5d9e" : "#9cc0ee"],
          [1, dark ? "#cfe3ff" : "#0d3f8a"],
        ],
    colorbar: {
      tickvals: steps.map(root),
      ticktext: steps.map(
        (step) =>
          `${difference && step > 0 ? "+" : ""}${minus((100 * step).toFixed(step && Math.abs(step) < 0.1 ? 1 : 0))} %`,
      ),
      thickness: 12,
      outlinewidth: 0,
      tickfont: { color: ink, size: 11 },
      len: 0.9,
    },
  };
  const [a, b] = (state.selected || []).map((k) => shown.indexOf(k));
  const ring =
    a >= 0 && b >= 0
      ? [
          {
            type: "rect",
            x0: b - 0.5,
            x1: b + 0.5,
            y0: a - 0.5,
            y1: a + 0.5,
            line: { color: dark ? "#ffd166" : "#d2006b", width: 3 },
          },
        ]
      : [];
  const layout = {
    margin: { l: named ? 110 : 40, r: 10, t: 10, b: named ? 95 : 40 },
    paper_bgcolor: card,
    plot_bgcolor: card,
    font: { color: ink, family: getComputedStyle(document.body).fontFamily },
    xaxis: { ...axis, title: { text: "prediction", standoff: 6 }, tickangle: -55 },
    yaxis: { ...axis, title: { text: "label", standoff: 6 }, autorange: "reversed" },
    shapes: ring,
    hoverlabel: { align: "left" },
  };
  const plot = byId("matrix-plot");
  Plotly.react(plot, [trace], layout, { displayModeBar: false, responsive: true });
  byId("matrix-note").replaceChildren(
    ...matrixTitle(),
    difference
      ? ": green is better, with more pixels right on the diagonal and fewer mistakes elsewhere; red is worse. Points of percent of each label's pixels."
      : ": percent of each label's pixels; the diagonal is what is right.",
    named ? "" : " Point at a field for its classes.",
  );
}

function pairText(a, b) {
  const lines = [a === b ? `${data.classes[a]}, right` : `label ${data.classes[a]}, prediction ${data.classes[b]}`];
  data.runs.forEach((run, r) =>
    lines.push(
      `${run.name}: ${Number.isFinite(share(r, a, b)) ? percent(share(r, a, b)) : "–"} (${count(confusions.counts[r][a * K + b])} pixels)`,
    ),
  );
  return lines.join("\n");
}

// What is confused most, or changes most; with a filter among what has to do with the chosen classes.
function listPairs() {
  const difference = state.matrix >= R,
    pairs = [];
  for (let a = 0; a < K; a++) {
    for (let b = 0; b < K; b++) {
      if (a === b || (state.classes.size && !state.classes.has(a) && !state.classes.has(b))) continue;
      const value = difference ? Math.abs(fieldValue(a, b)) : share(state.matrix, a, b);
      if (value > 0) pairs.push([value, a, b]);
    }
  }
  confusions.pairs = pairs
    .sort((p, q) => q[0] - p[0])
    .slice(0, LISTED_PAIRS)
    .map(([, a, b]) => [a, b]);
  byId("pairs-title").replaceChildren(
    difference ? "Mistakes that change most: " : "Most frequent mistakes: ",
    ...matrixTitle(),
  );
  const [head, body] = [byId("pairs").tHead, byId("pairs").tBodies[0]];
  head.replaceChildren(
    make(
      "tr",
      {},
      make("th", { scope: "col" }, "Label → prediction"),
      ...data.runs.map((_, r) => make("th", { scope: "col" }, runTag(r))),
    ),
  );
  body.replaceChildren(
    ...confusions.pairs.map(([a, b]) =>
      make(
        "tr",
        { "data-pair": `${a} ${b}` },
        make(
          "th",
          { scope: "row" },
          make("button", { type: "button", onclick: () => choosePair(a, b) }, classTag(a), " → ", classTag(b)),
        ),
        ...data.runs.map((_, r) => make("td", {}, Number.isFinite(share(r, a, b)) ? percent(share(r, a, b)) : "–")),
      ),
    ),
  );
  markPair();
}

function markPair() {
  const key = state.selected ? state.selected.join(" ") : "";
  for (const row of all("#pairs tr[data-pair]")) row.setAttribute("aria-current", row.dataset.pair === key);
}

function choosePair(a, b) {
  state.selected = [a, b];
  drawMatrix();
  markPair();
  const field = byId("pair"),
    meters = data.runs.map((_, r) =>
      make(
        "div",
        { class: `meter run-${r % 6}` },
        runTag(r),
        make("span", {
          class: "fill",
          style: `width:${((100 * (share(r, a, b) || 0)) / Math.max(wrongShare(a, b), 1e-9)).toFixed(1)}%`,
        }),
        make(
          "span",
          {},
          `${Number.isFinite(share(r, a, b)) ? percent(share(r, a, b)) : "–"} · ${count(confusions.counts[r][a * K + b])} pixels`,
        ),
      ),
    );
  const found = new Map(); // image -> runs that name it
  data.runs.forEach((_, r) => {
    for (const index of confusions.images[r].subarray((a * K + b) * 5, (a * K + b) * 5 + 5)) {
      if (index >= 0) found.set(index, [...(found.get(index) || []), r]);
    }
  });
  const items = [...found].map(([index, runs]) => {
    const image = data.images.find((one) => one.index === index),
      signs = runs.map((r) => runTag(r).firstChild);
    if (!image)
      return make("li", { class: "small muted" }, ...signs, " ", name(data.names[index]), " (not on this page)");
    return make(
      "li",
      {},
      make(
        "button",
        { type: "button", "data-opens": index, onclick: () => goTo(index, { pair: a === b ? null : [a, b] }) },
        make("img", { src: image.element.src, alt: "" }),
        make("span", {}, ...signs, " ", name(data.names[index])),
      ),
    );
  });
  const title = a === b ? [classTag(a), ", right"] : [classTag(a), " taken for ", classTag(b)];
  field.replaceChildren(
    make("h3", {}, ...title),
    ...meters,
    make(
      "p",
      { class: "small muted" },
      items.length ? "Images with the most of it in each run:" : "No run names an image for it.",
    ),
    make("ul", {}, ...items),
  );
  say("pair-said", `${pairText(a, b).replace(/\n/g, "; ")}. ${items.length} images.`);
}

async function setUpConfusions() {
  confusions.counts = await Promise.all(data.runs.map((run) => unpack(run.confusion)));
  confusions.images = await Promise.all(data.runs.map((run) => unpack(run.pairs)));
  setUpShares();
  const entries = [
    ...data.runs.map((_, r) => runTag(r)),
    ...data.runs.slice(1).map((_, i) => make("span", {}, runTag(i + 1), " against ", runTag(0))),
  ];
  state.matrix = R > 1 ? R : 0;
  radios(byId("matrix"), entries, state.matrix, (i) => {
    state.matrix = i;
    drawMatrix();
    listPairs();
  });
  drawMatrix();
  listPairs();
  const plot = byId("matrix-plot");
  plot.on("plotly_click", (event) =>
    choosePair(confusions.shown[event.points[0].y], confusions.shown[event.points[0].x]),
  );
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    const { shown } = confusions,
      at = (state.selected || [shown[0], shown[0]]).map((k) => Math.max(0, shown.indexOf(k)));
    choosePair(...at.map((i, side) => shown[clamp(i + step[side], 0, shown.length - 1)]));
    event.preventDefault();
  });
  on("classes", () => {
    drawMatrix();
    listPairs();
  });
  on("theme", drawMatrix);
  printAt(plot, 640);
  if (confusions.pairs.length) choosePair(...confusions.pairs[0]);
}
