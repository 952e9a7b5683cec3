// Builds the page: a strip of test images for each data set, and a panel for each run.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** Adds a strip of test images, each a button that selects it in every panel. */
function buildStrip(panel) {
  const strip = clone("strip");
  const several = panels.length > 1 ? ` of ${panel.images.name}; a click selects one in every run` : "";
  strip.querySelector("h2").textContent = `Test images${several}`;
  const buttons = panel.images.examples.map((at) => {
    const button = element("button", { type: "button" }, panel.sprite.canvas(at));
    button.ariaLabel = panel.imageName(at);
    button.addEventListener("click", () => {
      pick(panel, at);
      announce(() => button.ariaLabel);
    });
    return button;
  });
  const tiles = strip.querySelector(".tiles");
  tiles.ariaLabel = "test images";
  roving(tiles, buttons);
  document.querySelector(".strips").append(strip);
}

async function start() {
  const loaded = Object.entries(DATA.sprites).map(async ([key, sprite]) => [key, await Sprite.load(sprite)]);
  const sprites = Object.fromEntries(await Promise.all(loaded));
  panels.push(...DATA.panels.map((data) => new Panel(data, sprites)));
  const main = document.querySelector("main");
  main.classList.toggle("several", panels.length > 1);
  main.append(...panels.map((panel) => panel.root));
  const firsts = new Map(); // the first panel of each data set
  for (const panel of panels) if (!firsts.has(panel.images.data_set)) firsts.set(panel.images.data_set, panel);
  firsts.forEach(buildStrip);
  document.documentElement.dataset.ready = "true";
}

await start();
