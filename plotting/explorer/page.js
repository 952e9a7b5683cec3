// The page: a panel for each run, with its plane of latents, the picture decoded below the pointer, and what leads there.

const DATA = JSON.parse(document.getElementById("data").textContent);
const MARGIN = { left: 46, right: 10, top: 10, bottom: 40 }; // of the plane, in CSS pixels
const REACH = 14; // how near the pointer is to a test image that it shows, in CSS pixels
const STEP = { fine: 0.01, coarse: 0.1 }; // of an arrow key, as a share of the plane
const [REDRAW, QUIET] = [150, 400]; // milliseconds after a resize, and after a key before a screen reader is told

const range = (count) => Array.from({ length: count }, (_, at) => at);
const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
const clipped = (value, low, high) => Math.min(Math.max(value, low), high);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function floats(text) {
  return new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

// Rows of an array of floats, each a view of it.
function rows(text, width) {
  const all = floats(text);
  return range(all.length / width).map((row) => all.subarray(row * width, (row + 1) * width));
}

function number(value, digits = 2) {
  return value.toFixed(digits).replace("-", "\u2212");
}

function clone(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function paint(canvas, values, [height, width, channels]) {
  Object.assign(canvas, { width, height });
  const picture = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      const value = values[pixel * channels + Math.min(channel, channels - 1)];
      picture.data[4 * pixel + channel] = Math.round(255 * value);
    }
    picture.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// Many pictures in one: `draw` puts one of them on a canvas, `bytes` has its values, channels last.
class Sprite {
  static async load({ url, columns, height, width, count }) {
    const image = new Image();
    image.src = url;
    await image.decode();
    return Object.assign(new Sprite(), { image, columns, height, width, count });
  }

  draw(canvas, index, options) {
    const { columns, height, width } = this;
    Object.assign(canvas, { width, height });
    const [left, top] = [(index % columns) * width, Math.floor(index / columns) * height];
    const pen = canvas.getContext("2d", options);
    pen.drawImage(this.image, left, top, width, height, 0, 0, width, height);
    return pen;
  }

  canvas(index) {
    const canvas = element("canvas");
    this.draw(canvas, index);
    return canvas;
  }

  bytes(index, channels) {
    const pen = this.draw(element("canvas"), index, { willReadFrequently: true });
    const { data } = pen.getImageData(0, 0, this.width, this.height);
    return Uint8Array.from({ length: this.width * this.height * channels }, (_, at) =>
      data[4 * Math.floor(at / channels) + (at % channels)],
    );
  }
}

// Buttons that are one stop of the Tab key, with arrows between them.
function roving(group, buttons) {
  buttons.forEach((button, at) => {
    button.tabIndex = at === 0 ? 0 : -1;
    button.addEventListener("focus", () => buttons.forEach((one) => (one.tabIndex = one === button ? 0 : -1)));
    button.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const to = { Home: buttons[0], End: buttons.at(-1) }[event.key] ?? (move && buttons.at((at + move) % buttons.length));
      if (!to) return;
      event.preventDefault();
      to.focus();
    });
  });
  group.replaceChildren(...buttons);
}

let telling;

// Tells a screen reader what `words()` says once nothing more has come for a moment.
function tell(words) {
  clearTimeout(telling);
  telling = setTimeout(() => (document.querySelector(".status").textContent = words()), QUIET);
}

// Round numbers between two limits, a handful of them, and their decimals.
function ticks(low, high) {
  const raw = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= raw);
  const first = Math.ceil(low / step);
  const values = range(Math.floor(high / step) - first + 1).map((at) => (first + at) * step);
  return { values, digits: Math.max(0, -Math.floor(Math.log10(step))) };
}

// What a panel shows of a plane: axes, contours of the prior, test images, pseudo-inputs and draws of a posterior.
class Chart {
  constructor(canvas, panel) {
    Object.assign(this, { canvas, panel });
    let waiting;
    new ResizeObserver(() => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.draw(), this.side ? REDRAW : 0);
    }).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // CSS pixels of plane coordinates, and back.
  at([a, b]) {
    const [[left, bottom], [right, top]] = this.panel.limits;
    const inner = this.inner();
    return [
      MARGIN.left + ((a - left) / (right - left)) * inner,
      MARGIN.top + ((top - b) / (top - bottom)) * inner * this.ratio(),
    ];
  }

  from([x, y]) {
    const [[left, bottom], [right, top]] = this.panel.limits;
    const inner = this.inner();
    const [across, down] = [(x - MARGIN.left) / inner, (y - MARGIN.top) / (inner * this.ratio())];
    return [left + clipped(across, 0, 1) * (right - left), top - clipped(down, 0, 1) * (top - bottom)];
  }

  inner() {
    return this.canvas.clientWidth - MARGIN.left - MARGIN.right;
  }

  ratio() {
    return (this.canvas.clientHeight - MARGIN.top - MARGIN.bottom) / this.inner();
  }

  draw() {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!width) return;
    const scale = window.devicePixelRatio;
    this.side = width;
    Object.assign(this.canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    this.drawAxes(pen, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, MARGIN.top, this.inner(), this.inner() * this.ratio());
    pen.clip();
    this.drawContours(pen);
    this.drawImages(pen);
    this.drawPseudoInputs(pen);
    pen.restore();
    this.panel.placeCross();
  }

  drawAxes(pen, width, height) {
    const [low, high] = this.panel.limits;
    Object.assign(pen, { font: `12px ${colour("--font")}`, fillStyle: colour("--soft"), strokeStyle: colour("--line") });
    pen.strokeRect(MARGIN.left, MARGIN.top, this.inner(), this.inner() * this.ratio());
    pen.textAlign = "center";
    const across = ticks(low[0], high[0]);
    for (const value of across.values) {
      const [x] = this.at([value, low[1]]);
      pen.fillRect(x, height - MARGIN.bottom, 1, 4);
      pen.fillText(number(value, across.digits), x, height - MARGIN.bottom + 16);
    }
    pen.fillText(this.panel.names[0], MARGIN.left + this.inner() / 2, height - 6);
    pen.textAlign = "right";
    const up = ticks(low[1], high[1]);
    for (const value of up.values) {
      const [, y] = this.at([low[0], value]);
      pen.fillRect(MARGIN.left - 4, y, 4, 1);
      pen.fillText(number(value, up.digits), MARGIN.left - 7, y + 4);
    }
    pen.save();
    pen.translate(12, MARGIN.top + (this.inner() * this.ratio()) / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText(this.panel.names[1], 0, 0);
    pen.restore();
  }

  drawContours(pen) {
    pen.strokeStyle = colour("--soft");
    for (const { share, lines } of this.panel.contours) {
      pen.lineWidth = share > 0.9 ? 0.75 : 1.25;
      for (const line of lines) {
        pen.beginPath();
        for (let at = 0; at < line.length; at += 2) pen.lineTo(...this.at([line[at], line[at + 1]]));
        pen.stroke();
      }
    }
  }

  drawImages(pen) {
    const { plane, images, hidden, order } = this.panel;
    const radius = clipped(60 / Math.sqrt(plane.length), 2, 4);
    pen.globalAlpha = 0.8;
    for (const at of order) {
      if (hidden.has(images.labels[at])) continue;
      pen.fillStyle = images.colours[images.labels[at]];
      pen.beginPath();
      pen.arc(...this.at(plane[at]), radius, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.globalAlpha = 1;
  }

  drawPseudoInputs(pen) {
    const { pseudo, chosen } = this.panel;
    if (!pseudo) return;
    pen.globalAlpha = 0.8;
    Object.assign(pen, { strokeStyle: colour("--text"), fillStyle: colour("--text"), lineWidth: 1 });
    const size = clipped(60 / Math.sqrt(pseudo.plane.length), 2.5, 4); // many would hide the rest
    for (const point of pseudo.plane) this.plus(pen, point, size);
    pen.globalAlpha = 1;
    if (chosen === null) return;
    for (const point of pseudo.drawsPlane.slice(chosen * pseudo.draws, (chosen + 1) * pseudo.draws)) {
      pen.beginPath();
      pen.arc(...this.at(point), 2.5, 0, 2 * Math.PI);
      pen.fill();
    }
    Object.assign(pen, { strokeStyle: colour("--accent"), lineWidth: 3 });
    this.plus(pen, pseudo.plane[chosen], 9);
  }

  plus(pen, point, size) {
    const [x, y] = this.at(point);
    pen.beginPath();
    pen.moveTo(x - size, y);
    pen.lineTo(x + size, y);
    pen.moveTo(x, y - size);
    pen.lineTo(x, y + size);
    pen.stroke();
  }
}

class Panel {
  static async make(data, sprites) {
    const panel = new Panel();
    panel.dim = floats(data.centre).length;
    Object.assign(panel, data, {
      sprite: sprites[data.images.sprite],
      centre: floats(data.centre),
      basis: rows(data.basis, panel.dim),
      means: rows(data.means, panel.dim),
      plane: rows(data.plane, 2),
      hidden: new Set(),
      chosen: null, // pseudo-input
      held: false,
    });
    panel.order = shuffled(panel.plane.length); // so that no class lies on top of another
    if (data.decoder) panel.decoder = { steps: data.decoder.steps, weights: floats(data.decoder.weights) };
    if (data.grid) {
      const sprite = sprites[data.grid.sprite];
      panel.tiles = range(sprite.count).map((at) => sprite.bytes(at, data.images.shape[2]));
    }
    if (data.pseudo) panel.pseudo = panel.unpackedPseudo(data.pseudo, sprites);
    panel.build();
    panel.takeImage(data.images.examples[0] ?? 0);
    panel.held = false;
    return panel;
  }

  unpackedPseudo(data, sprites) {
    const means = rows(data.means, this.dim);
    const drawn = rows(data.draws, this.dim);
    return {
      ...data,
      means,
      drawn,
      draws: drawn.length / means.length,
      plane: rows(data.plane, 2),
      drawsPlane: rows(data.draws_plane, 2),
      sprite: sprites[data.sprite],
      pictures: data.pictures && sprites[data.pictures],
    };
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  build() {
    this.root = clone("panel");
    this.find("h2").textContent = this.label;
    this.find(".facts").textContent = this.facts.join(" ");
    this.find(".caption").textContent = this.caption;
    this.plate = this.find(".plane");
    this.plate.ariaLabel = `Latent plane of ${this.label}: ${this.names.join(" to the right, ")} upward`;
    this.chart = new Chart(this.find(".plane > canvas"), this);
    this.buildLegend();
    this.buildSliders();
    if (this.pseudo) this.buildPseudoInputs();
    this.listen();
  }

  buildLegend() {
    const { classes, colours, labels } = this.images;
    const present = range(classes.length).filter((label) => labels.includes(label));
    const buttons = present.map((label) => {
      const key = element("i");
      key.style.background = colours[label];
      const button = element("button", { type: "button" }, key, classes[label]);
      button.ariaPressed = "true";
      button.addEventListener("click", () => {
        const shown = this.hidden.delete(label) || !this.hidden.add(label);
        button.ariaPressed = String(shown);
        this.chart.draw();
        this.show();
      });
      return button;
    });
    const legend = this.find(".legend");
    roving(legend, buttons);
    const notes = this.contours.length ? ["contours: half, 80 % and 95 % of the prior"] : [];
    if (this.pseudo) notes.push("+ pseudo-inputs");
    if (notes.length) legend.append(element("span", { textContent: notes.join(" \u00b7 ") }));
  }

  buildSliders() {
    const details = this.find(".sliders");
    details.hidden = !this.sliders.length;
    details.open = this.sliders.length <= 12 || !this.pseudo;
    details.firstElementChild.textContent = `${this.sliders.length} latent dimensions`;
    this.knobs = this.sliders.map(({ at, name, low, high }) => {
      const input = element("input", { type: "range", min: low, max: high, step: (high - low) / 200 });
      const output = element("output");
      input.addEventListener("input", () => {
        const z = this.z.slice();
        z[at] = Number(input.value);
        this.held = true;
        this.setLatent(z);
      });
      details.lastElementChild.append(element("label", {}, element("span", { textContent: name }), input, output));
      return { at, input, output };
    });
  }

  buildPseudoInputs() {
    const { sprite, index, total } = this.pseudo;
    this.find(".pseudo").hidden = false;
    const [shown, all] = [index.length, total].map((count) => count.toLocaleString("en"));
    this.find(".pseudo h3").textContent = `${index.length < total ? `${shown} of ` : ""}${all} pseudo-inputs`;
    this.buttons = index.map((name, k) => {
      const button = element("button", { type: "button" }, sprite.canvas(k));
      button.ariaLabel = `pseudo-input ${name}`;
      button.ariaPressed = "false";
      button.addEventListener("click", () => this.takePseudoInput(k));
      return button;
    });
    const tiles = this.find(".pseudo .tiles");
    tiles.ariaLabel = "pseudo-inputs";
    roving(tiles, this.buttons);
  }

  listen() {
    const place = (event) => {
      const box = this.chart.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const follow = (event) => {
      this.pointer = place(event);
      if (!this.held || event.pointerType === "touch") this.move(this.chart.from(this.pointer));
      else this.showTooltip();
    };
    this.plate.addEventListener("pointermove", follow);
    this.plate.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.pointer = place(event);
      if (event.pointerType === "touch") follow(event);
      else this.click();
    });
    this.plate.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.showTooltip();
    });
    this.plate.addEventListener("keydown", (event) => this.key(event));
  }

  // Holds the point, or the test image below the pointer; lets go of it the second time.
  click() {
    const near = this.nearest(this.pointer);
    if (this.held && near.distance > REACH) {
      this.held = false;
      this.move(this.chart.from(this.pointer));
    } else if (near.distance <= REACH) pick(this, near.at);
    else {
      this.held = true;
      this.move(this.chart.from(this.pointer));
    }
  }

  key(event) {
    const [[left, bottom], [right, top]] = this.limits;
    const step = event.shiftKey ? STEP.coarse : STEP.fine;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key in moves) {
      const [a, b] = moves[event.key];
      const [x, y] = [this.point[0] + a * step * (right - left), this.point[1] + b * step * (top - bottom)];
      this.move([clipped(x, left, right), clipped(y, bottom, top)]);
    } else if (event.key === "Home") this.move([(left + right) / 2, (bottom + top) / 2]);
    else if (event.key === "Enter") pick(this, this.nearest(this.chart.at(this.point)).at);
    else if (event.key === "Escape") this.held = false;
    else return;
    event.preventDefault();
    if (event.key !== "Escape") this.held = true; // else the next movement of a mouse would take it away
    this.tellWhere();
  }

  tellWhere() {
    tell(() => `${this.where()}; nearest: ${this.imageName(this.near.at)}`);
  }

  imageName(at) {
    const { labelled, labels, classes, index } = this.images;
    return `${labelled ? `${classes[labels[at]]}, ` : ""}test image ${index[at]}`;
  }

  // The test image nearest to a place in CSS pixels, of the classes that are shown.
  nearest([x, y]) {
    let [found, least] = [0, Infinity];
    this.plane.forEach((point, at) => {
      if (this.hidden.has(this.images.labels[at])) return;
      const [across, down] = this.chart.at(point);
      const distance = (across - x) ** 2 + (down - y) ** 2;
      if (distance < least) [found, least] = [at, distance];
    });
    return { at: found, distance: Math.sqrt(least) };
  }

  // To a point of the plane; what z has beside the plane stays, where there is a decoder for it.
  move(point) {
    const from = this.dim === 1 ? [this.z[0], 0] : this.basis.map((axis) => dot(axis, this.away()));
    const start = this.decoder ? this.z : this.centre;
    const shift = this.decoder ? [point[0] - from[0], point[1] - from[1]] : point;
    const z = start.map((value, at) => value + shift[0] * this.basis[0][at] + shift[1] * this.basis[1][at]);
    this.set(z, point);
  }

  away() {
    return this.z.map((value, at) => value - this.centre[at]);
  }

  setLatent(z, height = this.point?.[1] ?? 0) {
    this.z = z;
    this.set(z, this.dim === 1 ? [z[0], height] : this.basis.map((axis) => dot(axis, this.away())));
  }

  set(z, point) {
    this.z = z;
    this.point = point;
    this.exact = null; // the picture of z itself, where there is one and no decoder
    if (this.chosen !== null) this.forgetPseudoInput();
    this.later();
  }

  takeImage(at) {
    this.held = true;
    this.setLatent(this.means[at].slice(), this.plane[at][1]);
  }

  takePseudoInput(k) {
    this.held = true;
    this.setLatent(this.pseudo.means[k].slice(), this.pseudo.plane[k][1]);
    this.chosen = k;
    const bytes = this.pseudo.pictures?.bytes(k, this.images.shape[2]);
    this.exact = bytes ? Float32Array.from(bytes, (byte) => byte / 255) : null;
    this.buttons.forEach((button, at) => (button.ariaPressed = String(at === k)));
    this.chart.draw();
    this.showPosterior();
    this.tellWhere();
  }

  forgetPseudoInput() {
    this.chosen = null;
    this.buttons.forEach((button) => (button.ariaPressed = "false"));
    this.find(".posterior").hidden = true;
    this.chart.draw();
  }

  // The decoded mean of the chosen pseudo-input's posterior and, where there is a decoder for them, draws of it.
  showPosterior() {
    const { index, means, drawn, draws } = this.pseudo;
    const k = this.chosen;
    this.find(".posterior").hidden = false;
    this.find(".posterior h3").textContent = `Decoded posterior of pseudo-input ${index[k]} (dots: its draws)`;
    const shown = [["input", this.pseudo.sprite.canvas(k)], ["mean", this.drawn(means[k], this.exact)]];
    const points = this.decoder ? drawn.slice(k * draws, (k + 1) * draws) : [];
    shown.push(...points.map((z, at) => [`draw ${at + 1}`, this.drawn(z)]));
    const figures = shown.map(([name, canvas]) => {
      Object.assign(canvas, { role: "img", ariaLabel: name });
      return element("figure", {}, canvas, element("figcaption", { textContent: name }));
    });
    this.find(".posterior .row").replaceChildren(...figures);
  }

  drawn(z, exact) {
    const canvas = element("canvas");
    paint(canvas, exact ?? this.picture(z), this.images.shape);
    return canvas;
  }

  picture(z) {
    const { shape } = this.images;
    if (this.decoder) return decode(this.decoder, z, shape);
    const [low, high] = this.limits;
    const [x, y] = this.point.map((value, axis) => (value - low[axis]) / (high[axis] - low[axis]));
    return interpolated(this.tiles, this.grid.side, x, y, shape[0] * shape[1] * shape[2]);
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.show();
    });
  }

  show() {
    const canvas = this.find(".decoded canvas");
    for (const clear of ["clearMarks", "clearMeasures"]) performance[clear]("decode"); // the last one is kept
    performance.mark("decode");
    const values = this.exact ?? this.picture(this.z);
    performance.measure("decode", "decode");
    paint(canvas, values, this.images.shape);
    canvas.dataset.z = JSON.stringify(Array.from(this.z));
    this.find(".decoded span").textContent = this.where();
    this.near = this.nearest(this.chart.at(this.point));
    this.sprite.draw(this.find(".nearest canvas"), this.near.at);
    this.find(".nearest span").textContent = this.imageName(this.near.at);
    for (const { at, input, output } of this.knobs) {
      input.value = this.z[at];
      output.textContent = number(this.z[at]);
    }
    this.placeCross();
    this.showTooltip();
  }

  where() {
    const names = this.dim > 2 ? ["", ""] : this.names.map((name) => `${name} = `);
    const shown = range(Math.min(this.dim, 2)).map((axis) => `${names[axis]}${number(this.point[axis])}`);
    return this.dim > 2 ? `at (${shown.join(", ")})` : shown.join(", ");
  }

  placeCross() {
    const cross = this.find(".cross");
    const [x, y] = this.chart.at(this.point);
    cross.style.transform = `translate(${x}px, ${y}px)`;
    cross.classList.toggle("held", this.held);
  }

  showTooltip() {
    const tooltip = this.find(".tooltip");
    const near = this.pointer && this.nearest(this.pointer);
    tooltip.hidden = !near || near.distance > REACH;
    if (tooltip.hidden) return;
    this.sprite.draw(tooltip.firstElementChild, near.at);
    tooltip.lastElementChild.textContent = this.imageName(near.at);
    const [x, y] = this.chart.at(this.plane[near.at]);
    const { clientWidth: width, clientHeight: height } = this.plate;
    const left = clipped(x - tooltip.offsetWidth / 2, 0, width - tooltip.offsetWidth);
    const above = y - tooltip.offsetHeight - 12;
    tooltip.style.transform = `translate(${left}px, ${above > 0 ? above : Math.min(y + 12, height)}px)`;
  }
}

// The numbers below count in an order that looks random and is always the same.
function shuffled(count) {
  let state = 1;
  const order = range(count);
  for (let at = count - 1; at > 0; at -= 1) {
    state = (state * 48271) % 2147483647;
    const other = state % (at + 1);
    [order[at], order[other]] = [order[other], order[at]];
  }
  return order;
}

const panels = [];

// Takes a test image in the panel and in all others that show it.
function pick(panel, at) {
  const { data_set, index } = panel.images;
  for (const other of panels) {
    const place = other.images.data_set === data_set ? other.images.index.indexOf(index[at]) : -1;
    if (place >= 0) other.takeImage(place);
  }
}

function buildStrip(panel) {
  const strip = clone("strip");
  const several = panels.length > 1 ? ` of ${panel.images.name}; a click takes one in every run` : "";
  strip.querySelector("h2").textContent = `Test images${several}`;
  const buttons = panel.images.examples.map((at) => {
    const button = element("button", { type: "button" }, panel.sprite.canvas(at));
    button.ariaLabel = panel.imageName(at);
    button.addEventListener("click", () => {
      pick(panel, at);
      tell(() => button.ariaLabel);
    });
    return button;
  });
  const tiles = strip.querySelector(".tiles");
  tiles.ariaLabel = "test images";
  roving(tiles, buttons);
  document.querySelector(".strips").append(strip);
}

async function start() {
  const named = Object.entries(DATA.sprites).map(async ([key, sprite]) => [key, await Sprite.load(sprite)]);
  const sprites = Object.fromEntries(await Promise.all(named));
  const main = document.querySelector("main");
  main.classList.toggle("several", DATA.panels.length > 1);
  for (const data of DATA.panels) {
    const panel = await Panel.make(data, sprites);
    panels.push(panel);
    main.append(panel.root);
  }
  const firsts = new Map();
  for (const panel of panels) if (!firsts.has(panel.images.data_set)) firsts.set(panel.images.data_set, panel);
  firsts.forEach(buildStrip);
  document.documentElement.dataset.ready = "true";
}

await start();
