// What all parts share: the data of the page, its state, and how names get into the document.

const data = JSON.parse(document.getElementById("data").textContent);
const R = data.runs.length,
  K = data.classes.length;
const marks = [...document.querySelectorAll(".lead .mark")].map((mark) => mark.textContent);

// What the reader has chosen. Parts listen to what they show: on("classes", draw), emit("classes").
const state = {
  classes: new Set(), // filter; empty: all
  image: -1,
  y: 0,
  x: 0, // index into data.images, pixel of the label
  pair: null, // [label, predicted] that mistakes are left to
  mode: "predictions",
  strength: 0.6,
  stretch: true,
  selected: null, // field of the confusion matrix, as pair
  matrix: 0, // run of the confusion matrix; R and above: differences to the first
  method: 0,
  onlyWrong: false,
  brushed: null, // of the scatter plots; brushed: indices of pixels
};
const listeners = {};
const on = (what, listener) => (listeners[what] ||= []).push(listener);
const emit = (what) => (listeners[what] || []).forEach((listener) => listener());

const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Makes an element. Text is text, never markup: names of classes and files come from anywhere.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}
const name = (text) => make("bdi", {}, text);
const rgb = (k) => `rgb(${data.colors[k].join(",")})`;
const swatch = (k) =>
  make("span", k < 0 ? { class: "swatch void" } : { class: "swatch", style: `background:${rgb(k)}` });
const className = (k) => (k < 0 ? "no label" : data.classes[k]);
const classTag = (k) => make("span", { class: "tag" }, swatch(k), name(className(k)));
const runTag = (r) =>
  make(
    "span",
    { class: "run" },
    make("span", { class: `mark run-${r % 6}`, "aria-hidden": "true" }, marks[r]),
    name(data.runs[r].name),
  );
const minus = (text) => text.replace("-", "−");
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 2 : 1)} %`;
const fixed = (value, digits) => (Number.isFinite(value) ? minus(value.toFixed(digits)) : "–");
const count = (value) => value.toLocaleString("en");
// plotly.js reads some tags in texts.
const plotText = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

const arrayTypes = {
  i1: Int8Array,
  u1: Uint8Array,
  u2: Uint16Array,
  i4: Int32Array,
  f4: Float32Array,
  f8: Float64Array,
};

// A packed array, unpacked once.
function unpack(packed) {
  packed.array ||= (async () => {
    const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new arrayTypes[packed.type](await new Response(stream).arrayBuffer());
  })();
  return packed.array;
}

// Says something to a screen reader, once the reader has come to rest.
const saying = {};
function say(id, text) {
  clearTimeout(saying[id]);
  saying[id] = setTimeout(() => {
    byId(id).textContent = text;
  }, 250);
}

function trouble(error) {
  const field = byId("trouble");
  field.textContent = `A part of this page does not work in this browser: ${error.message || error}`;
  field.hidden = false;
  console.error(error);
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
const themeColor = (variable) => getComputedStyle(document.documentElement).getPropertyValue(variable).trim();

function setUpTheme() {
  const button = byId("theme");
  const show = () => {
    button.setAttribute("aria-pressed", isDark());
    emit("theme");
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  systemDark.addEventListener("change", show);
  let before;
  addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    emit("theme");
    emit("print");
  });
  addEventListener("afterprint", () => {
    if (before) document.documentElement.dataset.theme = before;
    else delete document.documentElement.dataset.theme;
    emit("theme");
    emit("printed");
  });
  button.setAttribute("aria-pressed", isDark());
}

// Plots do not follow the width of paper by themselves.
function printAt(plot, width) {
  on("print", () => Plotly.relayout(plot, { width }));
  on("printed", () => Plotly.relayout(plot, { width: null, autosize: true }));
}

function toggleClass(k) {
  if (!state.classes.delete(k)) state.classes.add(k);
  state.brushed = null;
  emit("classes");
}
const isShown = (k) => !state.classes.size || state.classes.has(k);

// A button for a class, which filters by it.
function classButton(k) {
  return make(
    "button",
    {
      type: "button",
      class: "class",
      "aria-pressed": state.classes.has(k),
      "data-class": k,
      onclick: () => toggleClass(k),
    },
    classTag(k),
  );
}

function setUpFilter() {
  const select = byId("filter-add"),
    chips = byId("chips"),
    table = byId("classes");
  select.addEventListener("change", () => {
    if (select.value !== "") {
      state.classes.delete(Number(select.value));
      toggleClass(Number(select.value));
    }
    select.value = "";
  });
  for (const button of all("button.class", table))
    button.addEventListener("click", () => toggleClass(Number(button.dataset.class)));
  on("classes", () => {
    const chosen = [...state.classes];
    chips.replaceChildren(
      ...chosen.map((k) =>
        make(
          "button",
          { type: "button", "aria-label": `Take ${data.classes[k]} out of the filter`, onclick: () => toggleClass(k) },
          classTag(k),
          " ×",
        ),
      ),
    );
    if (chosen.length > 1)
      chips.append(
        make(
          "button",
          {
            type: "button",
            onclick: () => {
              state.classes.clear();
              emit("classes");
            },
          },
          "all classes",
        ),
      );
    select.options[0].textContent = chosen.length ? "add a class" : "all: choose some";
    table.classList.toggle("filtered", chosen.length > 0);
    for (const row of all("tr[data-class]", table))
      row.classList.toggle("chosen", state.classes.has(Number(row.dataset.class)));
    for (const button of all("button.class"))
      button.setAttribute("aria-pressed", state.classes.has(Number(button.dataset.class)));
  });
  byId("class-order").addEventListener("change", (event) => {
    const key = {
      start: (row) => Number(row.dataset.start),
      index: (row) => Number(row.dataset.class),
      share: (row) => -Number(row.dataset.share),
    }[event.target.value];
    const rows = all("tr[data-class]", table).sort((a, b) => key(a) - key(b));
    rows[0]?.parentNode.append(...rows);
  });
}

// Choices of which one is taken: radio buttons with text or elements as labels.
function radios(fieldset, entries, chosen, choose) {
  entries.forEach((entry, i) => {
    const input = make("input", {
      type: "radio",
      name: fieldset.id,
      value: i,
      checked: i === chosen,
      onchange: () => choose(i),
    });
    fieldset.append(make("label", {}, input, " ", entry));
  });
}
