// The panel of one run: its latent plane, the picture decoded at one point, sliders and pseudo-inputs.

const REACH = 14; // how near to a test image the pointer must be to hit it, in CSS pixels
const KEY_STEP = { fine: 0.01, coarse: 0.1 }; // of an arrow key without and with Shift, as a share of the plane

/** The panels of the page, in their order. */
const panels = [];

/** Selects a test image in this panel and in all others that have it. */
function pick(panel, at) {
  const { data_set, index } = panel.images;
  for (const other of panels) {
    const place = other.images.data_set === data_set ? other.images.index.indexOf(index[at]) : -1;
    if (place >= 0) other.selectImage(place);
  }
}

/** Decodes the latents `z` shown at `point` of the plane. A `held` point does not follow the mouse. */
class Panel {
  constructor(data, sprites) {
    this.dim = floats(data.centre).length;
    Object.assign(this, data, {
      sprite: sprites[data.images.sprite],
      centre: floats(data.centre),
      basis: rows(data.basis, this.dim),
      means: rows(data.means, this.dim),
      plane: rows(data.plane, 2),
      hidden: new Set(), // labels of the classes that are not shown
      selected: null,
    });
    this.order = shuffled(this.plane.length); // of drawing, so that no class covers another
    if (data.decoder) this.decoder = { steps: data.decoder.steps, weights: floats(data.decoder.weights) };
    if (data.grid) {
      const sprite = sprites[data.grid.sprite];
      this.tiles = range(sprite.count).map((at) => sprite.bytes(at, data.images.shape[2]));
    }
    if (data.pseudo) this.pseudo = this.unpackedPseudo(data.pseudo, sprites);
    this.build();
    this.selectImage(data.images.examples[0] ?? 0);
    this.held = false;
  }

  unpackedPseudo(data, sprites) {
    const means = rows(data.means, this.dim);
    const draws = rows(data.draws, this.dim);
    return {
      ...data,
      means,
      draws,
      perInput: draws.length / means.length,
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
    this.stage = this.find(".plane");
    this.stage.ariaLabel = `Latent plane of ${this.label}: ${this.names.join(" to the right, ")} upward`;
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
    const shares = this.contours.map(({ share }) => `${Math.round(100 * share)} %`);
    const notes = shares.length ? [`contours: ${shares.join(", ")} of the prior's mass`] : [];
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
      button.addEventListener("click", () => this.selectPseudoInput(k));
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
      if (!this.held || event.pointerType === "touch") this.move(this.chart.toPlane(this.pointer));
      else this.showTooltip();
    };
    this.stage.addEventListener("pointermove", follow);
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.touched = place(event);
      if (event.pointerType === "touch") follow(event);
      else this.click(this.touched);
    });
    this.stage.addEventListener("pointerup", (event) => {
      if (event.pointerType !== "touch") return;
      const [x, y] = place(event).map((value, axis) => value - this.touched[axis]);
      if (Math.hypot(x, y) < REACH) this.click(place(event)); // a tap, and no drag
    });
    this.stage.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.showTooltip();
    });
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  /** Selects the test image below the pointer. Where there is none, holds the point, or releases a held one. */
  click(pointer) {
    this.pointer = pointer;
    const near = this.nearest(pointer);
    if (near && near.distance <= REACH) return pick(this, near.at);
    this.held = !this.held;
    this.move(this.chart.toPlane(pointer));
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // as Alt with an arrow, the browser's way back
    const [[left, bottom], [right, top]] = this.limits;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (arrow) {
      const step = event.shiftKey ? KEY_STEP.coarse : KEY_STEP.fine;
      const x = this.point[0] + arrow[0] * step * (right - left);
      const y = this.point[1] + arrow[1] * step * (top - bottom);
      this.move([clipped(x, left, right), clipped(y, bottom, top)]);
    } else if (event.key === "Home") this.move([(left + right) / 2, (bottom + top) / 2]);
    else if (event.key === "Enter") {
      const near = this.nearest(this.chart.toPixels(this.point));
      if (near) pick(this, near.at);
    } else if (event.key !== "Escape") return;
    event.preventDefault();
    this.held = event.key !== "Escape"; // the mouse moves a point that is not held
    this.placeCross();
    this.announceWhere();
  }

  announceWhere() {
    announce(() => this.where() + (this.near ? `; nearest: ${this.imageName(this.near.at)}` : ""));
  }

  imageName(at) {
    const { labelled, labels, classes, index } = this.images;
    return `${labelled ? `${classes[labels[at]]}, ` : ""}test image ${index[at]}`;
  }

  /** The test image nearest to a place in CSS pixels, among the classes that are shown; null where none is. */
  nearest([x, y]) {
    let [found, least] = [null, Infinity];
    this.plane.forEach((point, at) => {
      if (this.hidden.has(this.images.labels[at])) return;
      const [across, down] = this.chart.toPixels(point);
      const distance = (across - x) ** 2 + (down - y) ** 2;
      if (distance < least) [found, least] = [at, distance];
    });
    return found === null ? null : { at: found, distance: Math.sqrt(least) };
  }

  /** The point of the plane at which z is shown. With one latent dimension, its height is 0. */
  projected(z) {
    const offset = z.map((value, at) => value - this.centre[at]);
    return this.basis.map((axis) => dot(axis, offset));
  }

  /** Moves z to a point of the plane. Its part outside the plane stays, or becomes zero if there is no decoder. */
  move(point) {
    const start = this.decoder ? this.z : this.centre;
    const from = this.projected(start);
    const [a, b] = [point[0] - from[0], point[1] - from[1]];
    this.set(start.map((value, at) => value + a * this.basis[0][at] + b * this.basis[1][at]), point);
  }

  setLatent(z, height = this.point?.[1] ?? 0) {
    const point = this.projected(z);
    this.set(z, this.dim === 1 ? [point[0], height] : point);
  }

  set(z, point) {
    this.z = z;
    this.point = point;
    this.exact = null; // where there is no decoder, the picture of the selected pseudo-input's mean
    if (this.selected !== null) this.deselectPseudoInput();
    this.requestShow();
  }

  selectImage(at) {
    this.held = true;
    this.setLatent(this.means[at].slice(), this.plane[at][1]);
  }

  selectPseudoInput(k) {
    this.held = true;
    this.setLatent(this.pseudo.means[k].slice(), this.pseudo.plane[k][1]);
    this.selected = k;
    const bytes = this.pseudo.pictures?.bytes(k, this.images.shape[2]);
    this.exact = bytes ? Float32Array.from(bytes, (byte) => byte / 255) : null;
    this.buttons.forEach((button, at) => (button.ariaPressed = String(at === k)));
    this.chart.draw();
    this.showPosterior();
    this.announceWhere();
  }

  deselectPseudoInput() {
    this.selected = null;
    this.buttons.forEach((button) => (button.ariaPressed = "false"));
    this.find(".posterior").hidden = true;
    this.chart.draw();
  }

  /** Shows the selected pseudo-input, its decoded posterior mean and, where there is a decoder, decoded draws. */
  showPosterior() {
    const { index, sprite, means, draws, perInput } = this.pseudo;
    const k = this.selected;
    this.find(".posterior").hidden = false;
    const title = `Decoded posterior of pseudo-input ${index[k]} (dots in the plane: its draws)`;
    this.find(".posterior h3").textContent = title;
    const shown = [["input", sprite.canvas(k)], ["mean", this.painted(this.exact ?? this.picture(means[k]))]];
    const points = this.decoder ? draws.slice(k * perInput, (k + 1) * perInput) : [];
    shown.push(...points.map((z, at) => [`draw ${at + 1}`, this.painted(this.picture(z))]));
    const figures = shown.map(([name, canvas]) => {
      Object.assign(canvas, { role: "img", ariaLabel: name });
      return element("figure", {}, canvas, element("figcaption", { textContent: name }));
    });
    this.find(".posterior .row").replaceChildren(...figures);
  }

  painted(values) {
    const canvas = element("canvas");
    paint(canvas, values, this.images.shape);
    return canvas;
  }

  /** The decoded picture of z; where there is no decoder, the interpolated picture of the current point. */
  picture(z) {
    const { shape } = this.images;
    if (this.decoder) return decode(this.decoder, z, shape);
    const [low, high] = this.limits;
    const [x, y] = this.point.map((value, axis) => (value - low[axis]) / (high[axis] - low[axis]));
    return interpolated(this.tiles, this.grid.side, x, y, shape[0] * shape[1] * shape[2]);
  }

  requestShow() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.show();
    });
  }

  show() {
    const canvas = this.find(".decoded canvas");
    const began = performance.now();
    const values = this.exact ?? this.picture(this.z);
    canvas.dataset.milliseconds = performance.now() - began;
    paint(canvas, values, this.images.shape);
    canvas.dataset.z = JSON.stringify(Array.from(this.z));
    this.find(".decoded span").textContent = this.where();
    this.near = this.nearest(this.chart.toPixels(this.point));
    this.find(".nearest").hidden = !this.near;
    if (this.near) {
      this.sprite.draw(this.find(".nearest canvas"), this.near.at);
      this.find(".nearest span").textContent = this.imageName(this.near.at);
    }
    for (const { at, input, output } of this.knobs) {
      input.value = this.z[at];
      output.textContent = number(this.z[at]);
    }
    this.placeCross();
    this.showTooltip();
  }

  /** The current point in words. */
  where() {
    const values = this.point.map((value) => number(value));
    if (this.dim > 2) return `at (${values.join(", ")})`;
    return this.names.slice(0, this.dim).map((name, axis) => `${name} = ${values[axis]}`).join(", ");
  }

  placeCross() {
    const cross = this.find(".cross");
    const [x, y] = this.chart.toPixels(this.point);
    cross.style.transform = `translate(${x}px, ${y}px)`;
    cross.classList.toggle("held", this.held);
  }

  /** Shows the test image below the pointer in a tooltip. */
  showTooltip() {
    const tooltip = this.find(".tooltip");
    const near = this.pointer && this.nearest(this.pointer);
    tooltip.hidden = !near || near.distance > REACH;
    if (tooltip.hidden) return;
    this.sprite.draw(tooltip.firstElementChild, near.at);
    tooltip.lastElementChild.textContent = this.imageName(near.at);
    const [x, y] = this.chart.toPixels(this.plane[near.at]);
    const { clientWidth: width, clientHeight: height } = this.stage;
    const left = clipped(x - tooltip.offsetWidth / 2, 0, width - tooltip.offsetWidth);
    const above = y - tooltip.offsetHeight - 12;
    tooltip.style.transform = `translate(${left}px, ${above > 0 ? above : Math.min(y + 12, height)}px)`;
  }
}
