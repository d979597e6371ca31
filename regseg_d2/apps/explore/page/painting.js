// Pictures on canvases: classes and cosines over an image.

// Features of a run as coordinates along D directions in steps of 1 / 127: (D, n) int8. The page has differences.
function coordinatesOf(made) {
  made.coordinates ||= unpack(made.feature).then((steps) => {
    for (let i = 1; i < steps.length; i++) steps[i] += steps[i - 1];
    return steps;
  });
  return made.coordinates;
}

// Cosines between the feature of one cell and those of all cells: dot products of columns.
function cosines(coordinates, n, cell) {
  const values = new Float32Array(n);
  for (let start = 0; start < coordinates.length; start += n) {
    const factor = coordinates[start + cell];
    if (factor) for (let i = 0; i < n; i++) values[i] += factor * coordinates[start + i];
  }
  return values.map((value) => clamp(value / (127 * 127), -1, 1));
}

// The cell of a run's feature that a pixel of the label lies in.
function cellOf(made, y, x) {
  const [rows, columns] = made.cells,
    [height, width] = made.cell;
  return clamp(Math.floor(y / height), 0, rows - 1) * columns + clamp(Math.floor(x / width), 0, columns - 1);
}

// Mean cosine to cells of the same label as the chosen pixel, and to those of others.
function meansByLabel(values, made, image, label, chosen) {
  const [rows, columns] = made.cells,
    sums = [0, 0],
    counts = [0, 0];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const y = Math.floor((row + 0.5) * made.cell[0]),
        x = Math.floor((column + 0.5) * made.cell[1]);
      if (y >= image.size[0] || x >= image.size[1]) continue;
      const k = label[pixelAt(image, y, x)] - 1;
      if (k < 0) continue;
      sums[k === chosen ? 0 : 1] += values[row * columns + column];
      counts[k === chosen ? 0 : 1] += 1;
    }
  }
  return sums.map((sum, i) => (counts[i] ? sum / counts[i] : NaN));
}

// Place in a picture of the page of a pixel of the label, which may be larger.
function pixelAt(image, y, x) {
  const [height, width] = image.picture;
  const row = clamp(Math.floor(((y + 0.5) * height) / image.size[0]), 0, height - 1);
  return row * width + clamp(Math.floor(((x + 0.5) * width) / image.size[1]), 0, width - 1);
}

// The image's own pixels, RGBA, and their brightness, read once.
async function basePixels(image) {
  image.base ||= (async () => {
    const [height, width] = image.picture,
      canvas = make("canvas", { width, height });
    await image.element.decode();
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image.element, 0, 0, width, height);
    const rgba = context.getImageData(0, 0, width, height).data,
      gray = new Uint8Array(width * height);
    for (let i = 0; i < gray.length; i++)
      gray[i] = 0.299 * rgba[4 * i] + 0.587 * rgba[4 * i + 1] + 0.114 * rgba[4 * i + 2];
    return { rgba, gray };
  })();
  return image.base;
}

function paint(canvas, image, write) {
  const [height, width] = image.picture;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d"),
    picture = context.createImageData(width, height);
  write(picture.data, width, height);
  for (let i = 3; i < picture.data.length; i += 4) picture.data[i] = 255;
  context.putImageData(picture, 0, 0);
}

// Paints classes (their number plus one) over the image. Classes that the filter leaves out, and with `mistakes` all that
// is right, are the gray image; pixels without a label are hatched in the label's picture and gray with mistakes.
function paintClasses(canvas, image, base, classes, label, mistakes) {
  const strength = state.strength,
    pair = mistakes ? state.pair : null;
  paint(canvas, image, (out, width) => {
    for (let i = 0; i < classes.length; i++) {
      const k = classes[i] - 1,
        true_ = label[i] - 1,
        o = 4 * i;
      const wrong = true_ >= 0 && k !== true_;
      let shown = isShown(k);
      if (mistakes) shown = pair ? true_ === pair[0] && k === pair[1] : wrong && (isShown(k) || isShown(true_));
      if (k < 0) {
        const stripe = ((i % width) + Math.floor(i / width)) % 12 < 4;
        for (let c = 0; c < 3; c++)
          out[o + c] = stripe ? base.gray[i] * (1 - strength) : base.rgba[o + c] * (1 - strength) + 255 * strength;
      } else if (shown) {
        const color = data.colors[k],
          share = mistakes ? Math.max(strength, 0.85) : strength;
        for (let c = 0; c < 3; c++) out[o + c] = base.rgba[o + c] * (1 - share) + color[c] * share;
      } else {
        const gray = state.classes.size || mistakes ? 0.55 * base.gray[i] + 0.45 * (isDark() ? 30 : 245) : base.gray[i];
        out[o] = out[o + 1] = out[o + 2] = gray;
      }
    }
  });
}

// Paints cosines of cells over the gray image, from the color map's first color at `low` to its last at `high`.
function paintCosines(canvas, image, base, made, values, low, high) {
  const strength = Math.min(1, state.strength + 0.2),
    span = Math.max(high - low, 1e-6);
  const [rows, columns] = made.cells;
  const colors = Array.from(values, (value) => data.colormap[clamp(Math.round((255 * (value - low)) / span), 0, 255)]);
  paint(canvas, image, (out, width, height) => {
    const atColumn = Array.from({ length: width }, (_, x) =>
      clamp(Math.floor(((x + 0.5) * image.size[1]) / width / made.cell[1]), 0, columns - 1),
    );
    for (let y = 0; y < height; y++) {
      const start = clamp(Math.floor(((y + 0.5) * image.size[0]) / height / made.cell[0]), 0, rows - 1) * columns;
      for (let x = 0; x < width; x++) {
        const i = y * width + x,
          color = colors[start + atColumn[x]];
        for (let c = 0; c < 3; c++) out[4 * i + c] = base.gray[i] * (1 - strength) + color[c] * strength;
      }
    }
  });
}

// Draws the surroundings of a pixel, with a ring around it: `reach` pixels of the label to each side.
function drawCrop(canvas, element, image, y, x, reach) {
  const context = canvas.getContext("2d"),
    scale = image.picture[1] / image.size[1];
  const wide = reach * scale,
    high = (wide * canvas.height) / canvas.width;
  const cx = (x + 0.5) * scale,
    cy = (y + 0.5) * scale;
  context.fillStyle = "#888";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = wide * 2 > canvas.width;
  context.drawImage(element, cx - wide, cy - high, 2 * wide, 2 * high, 0, 0, canvas.width, canvas.height);
  for (const [color, line, radius] of [
    ["#000", 4, 7],
    ["#fff", 2, 7],
  ]) {
    context.strokeStyle = color;
    context.lineWidth = line;
    context.beginPath();
    context.arc(canvas.width / 2, canvas.height / 2, radius, 0, 7);
    context.stroke();
  }
}

function drawScale(canvas) {
  const context = canvas.getContext("2d"),
    picture = context.createImageData(256, 1);
  data.colormap.forEach((color, i) => picture.data.set([...color, 255], 4 * i));
  context.putImageData(picture, 0, 0);
}
