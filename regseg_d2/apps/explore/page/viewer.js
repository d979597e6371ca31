// Images: the strip, and the pictures of one image with relation maps of the chosen pixel.

const canvasesOf = (kind) => all(`canvas.${kind}`).sort((a, b) => a.dataset.run - b.dataset.run);
// What is on the stage: arrays of the image, cosines of each run.
let shown = null;

async function openImage(index, y, x) {
  const image = data.images[index],
    opened = { image };
  state.image = index;
  markStrip();
  opened.base = await basePixels(image);
  opened.label = await unpack(image.label);
  opened.predicted = await Promise.all(image.runs.map((made) => unpack(made.predicted)));
  opened.coordinates = await Promise.all(image.runs.map((made) => coordinatesOf(made)));
  if (state.image !== index) return; // another one was opened meanwhile
  shown = opened;
  byId("image-name").replaceChildren(name(data.names[image.index]));
  all("[data-iou]").forEach((field) => {
    field.textContent = `mean IoU ${fixed(image.runs[field.dataset.iou].mean ?? NaN, 1)}`;
  });
  [state.y, state.x] = y === undefined ? startingPixel(opened) : [y, x];
  drawClasses();
  choosePixel(state.y, state.x);
}

// Where to begin: a pixel of the chosen pair of classes, or one that the first run has wrong and the last right, or else
// any mistake, or else any label; well inside of a region of such pixels, so that the place can be seen.
function startingPixel({ image, label, predicted }) {
  const [height, width] = image.picture,
    last = predicted[R - 1];
  const shownLabel = (i) => label[i] && isShown(label[i] - 1);
  const wishes = [
    (i) =>
      state.pair && label[i] - 1 === state.pair[0] && predicted.some((classes) => classes[i] - 1 === state.pair[1]),
    (i) => shownLabel(i) && predicted[0][i] !== label[i] && last[i] === label[i],
    (i) => shownLabel(i) && last[i] !== label[i],
    shownLabel,
  ];
  for (const wish of wishes) {
    for (const reach of [24, 12, 6, 3, 0]) {
      const found = [];
      for (let y = reach; y < height - reach; y++) {
        for (let i = y * width + reach; i < (y + 1) * width - reach; i++) {
          if (wish(i) && wish(i - reach) && wish(i + reach) && wish(i - reach * width) && wish(i + reach * width))
            found.push(i);
        }
      }
      if (!found.length) continue;
      const i = found[found.length >> 1],
        y = Math.floor(i / width);
      return [
        Math.floor(((y + 0.5) * image.size[0]) / height),
        Math.floor(((i - y * width + 0.5) * image.size[1]) / width),
      ];
    }
  }
  return [image.size[0] >> 1, image.size[1] >> 1];
}

function drawClasses() {
  if (!shown) return;
  const { image, base, label, predicted } = shown;
  paintClasses(byId("label"), image, base, label, label, false);
  canvasesOf("predicted").forEach((canvas, r) =>
    paintClasses(canvas, image, base, predicted[r], label, state.mode === "mistakes"),
  );
  const seen = new Set([...label, ...predicted.flatMap((classes) => [...new Set(classes)])]);
  byId("image-classes").replaceChildren(
    ...[...seen]
      .filter((k) => k > 0)
      .sort((a, b) => a - b)
      .map((k) => classButton(k - 1)),
  );
  const note = byId("pair-note");
  note.hidden = !state.pair || state.mode !== "mistakes";
  if (!note.hidden) {
    const end = make(
      "button",
      {
        type: "button",
        onclick: () => {
          state.pair = null;
          drawClasses();
        },
      },
      "all mistakes",
    );
    note.replaceChildren(
      "Pixels of ",
      classTag(state.pair[0]),
      " that are taken for ",
      classTag(state.pair[1]),
      ". ",
      end,
    );
  }
}

function choosePixel(y, x) {
  const { image, label, coordinates } = shown;
  state.y = clamp(y, 0, image.size[0] - 1);
  state.x = clamp(x, 0, image.size[1] - 1);
  shown.cosines = image.runs.map((made, r) =>
    cosines(coordinates[r], made.cells[0] * made.cells[1], cellOf(made, state.y, state.x)),
  );
  drawRelations();
  for (const pin of all(".pin", byId("stage"))) {
    pin.style.top = `${(100 * (state.y + 0.5)) / image.size[0]}%`;
    pin.style.left = `${(100 * (state.x + 0.5)) / image.size[1]}%`;
  }
  drawCrop(byId("crop"), image.element, image, state.y, state.x, image.size[1] / 12);
  describe(label[pixelAt(image, state.y, state.x)] - 1);
}

function drawRelations() {
  if (!shown) return;
  const { image, base } = shown;
  let [low, high] = [-1, 1];
  if (state.stretch) {
    low = Math.min(...shown.cosines.map((values) => values.reduce((a, b) => Math.min(a, b))));
    high = Math.max(...shown.cosines.map((values) => values.reduce((a, b) => Math.max(a, b))));
  }
  canvasesOf("relation").forEach((canvas, r) =>
    paintCosines(canvas, image, base, image.runs[r], shown.cosines[r], low, high),
  );
  byId("scale-low").textContent = fixed(low, 2);
  byId("scale-high").textContent = fixed(high, 2);
}

function describe(k) {
  const { image, label, predicted } = shown,
    i = pixelAt(image, state.y, state.x);
  const entries = [make("dt", {}, "label"), make("dd", {}, classTag(k))],
    spoken = [`Pixel row ${state.y}, column ${state.x}; label ${className(k)}`];
  predicted.forEach((classes, r) => {
    const says = classes[i] - 1,
      [own, others] = meansByLabel(shown.cosines[r], image.runs[r], image, label, k);
    const verdict = k < 0 ? "" : says === k ? " ✓" : " ✗";
    entries.push(make("dt", {}, runTag(r)), make("dd", {}, classTag(says), verdict));
    spoken.push(`${data.runs[r].name} says ${className(says)}`);
    if (k >= 0) {
      entries.push(
        make("dt", { class: "muted" }, "cosine"),
        make("dd", { class: "muted" }, `${fixed(own, 2)} own class, ${fixed(others, 2)} others`),
      );
      spoken.push(`mean cosine ${fixed(own, 2)} to its class, ${fixed(others, 2)} to others`);
    }
  });
  byId("about").replaceChildren(
    make("span", { class: "muted" }, `row ${state.y}, column ${state.x}`),
    make("dl", {}, ...entries),
  );
  say("said", `${spoken.join("; ")}.`);
}

// Under each picture what it says of the place that the pointer is at.
function readAt(y, x) {
  for (const field of all(".reading")) {
    const r = Number(field.dataset.run),
      { image } = shown;
    const classes = field.dataset.reads === "label" ? shown.label : shown.predicted[r];
    if (y === null) field.replaceChildren();
    else if (field.dataset.reads === "relation")
      field.textContent = fixed(shown.cosines[r][cellOf(image.runs[r], y, x)], 2);
    else field.replaceChildren(classTag(classes[pixelAt(image, y, x)] - 1));
  }
}

function setUpStage() {
  const stage = byId("stage");
  const place = (event) => {
    const box = event.currentTarget.getBoundingClientRect(),
      { image } = shown;
    return [
      ((event.clientY - box.top) / box.height) * image.size[0],
      ((event.clientX - box.left) / box.width) * image.size[1],
    ].map(Math.floor);
  };
  for (const picture of all(".canvas", stage)) {
    picture.addEventListener("click", (event) => {
      if (shown) choosePixel(...place(event));
    });
    picture.addEventListener("pointermove", (event) => {
      if (shown) readAt(...place(event));
    });
    picture.addEventListener("pointerleave", () => {
      if (shown) readAt(null);
    });
  }
  stage.addEventListener("keydown", (event) => {
    if (!shown || event.ctrlKey || event.altKey || event.metaKey) return;
    const made = shown.image.runs.reduce((a, b) => (b.cell[0] < a.cell[0] ? b : a)); // the finest cells
    const [high, wide] = event.shiftKey ? [1, 1] : made.cell.map((length) => Math.max(1, Math.round(length)));
    const moves = { ArrowUp: [-high, 0], ArrowDown: [high, 0], ArrowLeft: [0, -wide], ArrowRight: [0, wide] };
    if (moves[event.key]) choosePixel(state.y + moves[event.key][0], state.x + moves[event.key][1]);
    else if (event.key === "PageDown" || event.key === "PageUp") {
      const order = all("#strip button:not([hidden])").map((button) => Number(button.dataset.image));
      const next = order[order.indexOf(state.image) + (event.key === "PageDown" ? 1 : -1)];
      if (next !== undefined) openImage(next).catch(trouble);
    } else return;
    event.preventDefault();
  });
}

function markStrip() {
  for (const button of all("#strip button")) {
    const chosen = Number(button.dataset.image) === state.image;
    button.setAttribute("aria-selected", chosen);
    button.tabIndex = chosen ? 0 : -1;
    if (chosen) {
      const strip = button.parentNode;
      strip.scrollLeft = button.offsetLeft - strip.offsetLeft - (strip.clientWidth - button.clientWidth) / 2;
    }
  }
}

// Sorts the strip, and leaves out images without a chosen class.
function sortStrip() {
  const strip = byId("strip"),
    [kind, r] = byId("image-order").value.split(" ");
  const score = (made) => {
    if (!state.classes.size) return made.mean ?? NaN;
    const known = [...state.classes].map((k) => made.ious[k]).filter(Number.isFinite);
    return known.length ? known.reduce((a, b) => a + b) / known.length : NaN;
  };
  const key = (button) => {
    const { runs, index } = data.images[button.dataset.image];
    if (kind === "name") return index;
    const value = kind === "low" ? score(runs[r]) : (kind === "gain" ? -1 : 1) * (score(runs[r]) - score(runs[0]));
    return Number.isFinite(value) ? value : Infinity;
  };
  const buttons = all("button", strip);
  strip.append(...buttons.sort((a, b) => (key(a) === key(b) ? a.dataset.image - b.dataset.image : key(a) - key(b))));
  let visible = 0;
  for (const button of buttons) {
    const image = data.images[button.dataset.image];
    button.hidden =
      state.classes.size > 0 &&
      ![...state.classes].some((k) => image.runs.some((made) => Number.isFinite(made.ious[k])));
    visible += !button.hidden;
    all(".image-scores > span", button).forEach((field, run) => {
      field.lastChild.textContent = fixed(score(image.runs[run]), 1);
    });
  }
  byId("image-count").textContent =
    `${visible} of ${buttons.length} shown here, ${count(data.names.length)} in the data; ${state.classes.size ? "IoU of the chosen classes" : "mean IoU"} below each`;
  markStrip();
}

async function setUpImages() {
  if (!data.images.length) return;
  const strip = byId("strip"),
    order = byId("image-order");
  for (const button of all("button", strip)) {
    const image = data.images[button.dataset.image];
    image.element = button.querySelector("img");
    button.addEventListener("click", () => openImage(Number(button.dataset.image)).catch(trouble));
  }
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const buttons = all("button:not([hidden])", strip),
      next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) {
      document.activeElement.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
    event.preventDefault();
  });
  for (const image of data.images) for (const made of image.runs) made.ious = await unpack(made.iou);
  for (let r = R - 1; r > 0; r--)
    for (const kind of ["gain", "loss"])
      order.append(
        make(
          "option",
          { value: `${kind} ${r}` },
          `${kind === "gain" ? "largest gain" : "largest loss"} of ${data.runs[r].name}`,
        ),
      );
  for (let r = 0; r < R; r++) order.append(make("option", { value: `low ${r}` }, `lowest IoU of ${data.runs[r].name}`));
  order.append(make("option", { value: "name 0" }, "place in the data"));
  order.addEventListener("change", sortStrip);
  all("#mode input").forEach((input) =>
    input.addEventListener("change", () => {
      state.mode = input.value;
      drawClasses();
    }),
  );
  byId("strength").addEventListener("input", (event) => {
    state.strength = event.target.value / 100;
    drawClasses();
    drawRelations();
  });
  byId("stretch").addEventListener("change", (event) => {
    state.stretch = event.target.checked;
    drawRelations();
  });
  on("classes", () => {
    sortStrip();
    drawClasses();
  });
  on("theme", drawClasses);
  drawScale(byId("scale"));
  setUpStage();
  sortStrip();
  await openImage(Number(all("#strip button:not([hidden])")[0].dataset.image));
}

// Opens an image of the data set at a pixel, where it is on the page; mistakes of a pair are shown if it is given.
function goTo(index, { y, x, pair = null }) {
  const place = data.images.findIndex((image) => image.index === index);
  if (place < 0) return;
  if (pair) {
    state.pair = pair;
    state.mode = "mistakes";
    byId("mode").querySelector("[value=mistakes]").checked = true;
  }
  openImage(place, y, x).catch(trouble);
  byId("stage").scrollIntoView({
    block: "start",
    behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
  });
  byId("stage").focus({ preventScroll: true });
}
