// Starts all parts.

// plotly.js, which is in the page deflated.
async function loadPlotly() {
  const bytes = await unpack(JSON.parse(byId("plotly").textContent));
  document.head.append(make("script", {}, new TextDecoder().decode(bytes)));
}

async function start() {
  setUpTheme();
  setUpFilter();
  await setUpImages();
  await loadPlotly();
  await setUpConfusions();
  await setUpScatter();
  document.documentElement.dataset.ready = "true";
}

// For the browser's console: what is on the stage, cosines of the chosen pixel to all cells of each run among it.
globalThis.explore = {
  data,
  state,
  get shown() {
    return shown;
  },
};
start().catch(trouble);
