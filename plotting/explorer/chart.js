// The latent plane of a panel, drawn on a canvas.

const MARGIN = { left: 46, right: 10, top: 10, bottom: 40 }; // around the plane, in CSS pixels
const REDRAW_DELAY = 150; // milliseconds after the last change of the window's size

/** About five round numbers between two limits, and how many decimals they need. */
function ticks(low, high) {
  const raw = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= raw);
  const first = Math.ceil(low / step);
  const values = range(Math.floor(high / step) - first + 1).map((at) => (first + at) * step);
  return { values, digits: Math.max(0, -Math.floor(Math.log10(step))) };
}

/** Draws axes, contours of the prior, test images, pseudo-inputs and draws from the posterior of the selected one. */
class Chart {
  constructor(canvas, panel) {
    Object.assign(this, { canvas, panel });
    let waiting;
    new ResizeObserver(() => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.draw(), this.isDrawn ? REDRAW_DELAY : 0);
    }).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Width and height of the plane inside its margins, in CSS pixels. */
  inner() {
    const { clientWidth, clientHeight } = this.canvas;
    return [clientWidth - MARGIN.left - MARGIN.right, clientHeight - MARGIN.top - MARGIN.bottom];
  }

  /** CSS pixels of a point of the plane. */
  toPixels([a, b]) {
    const [[left, bottom], [right, top]] = this.panel.limits;
    const [width, height] = this.inner();
    return [
      MARGIN.left + ((a - left) / (right - left)) * width,
      MARGIN.top + ((top - b) / (top - bottom)) * height,
    ];
  }

  /** The point of the plane at these CSS pixels, or the nearest one where they lie outside. */
  toPlane([x, y]) {
    const [[left, bottom], [right, top]] = this.panel.limits;
    const [width, height] = this.inner();
    const [across, down] = [(x - MARGIN.left) / width, (y - MARGIN.top) / height];
    return [left + clipped(across, 0, 1) * (right - left), top - clipped(down, 0, 1) * (top - bottom)];
  }

  draw() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth) return;
    this.isDrawn = true;
    const scale = window.devicePixelRatio;
    Object.assign(this.canvas, { width: Math.round(clientWidth * scale), height: Math.round(clientHeight * scale) });
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    this.drawAxes(pen);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, MARGIN.top, ...this.inner());
    pen.clip();
    this.drawContours(pen);
    this.drawImages(pen);
    this.drawPseudoInputs(pen);
    pen.restore();
    this.panel.placeCross();
  }

  drawAxes(pen) {
    const { limits: [low, high], names } = this.panel;
    const [width, height] = this.inner();
    const below = MARGIN.top + height;
    pen.font = `12px ${colour("--font")}`;
    Object.assign(pen, { fillStyle: colour("--soft"), strokeStyle: colour("--line") });
    pen.strokeRect(MARGIN.left, MARGIN.top, width, height);
    pen.textAlign = "center";
    const across = ticks(low[0], high[0]);
    for (const value of across.values) {
      const [x] = this.toPixels([value, low[1]]);
      pen.fillRect(x, below, 1, 4);
      pen.fillText(number(value, across.digits), x, below + 16);
    }
    pen.fillText(names[0], MARGIN.left + width / 2, below + MARGIN.bottom - 6);
    pen.textAlign = "right";
    const up = ticks(low[1], high[1]);
    for (const value of up.values) {
      const [, y] = this.toPixels([low[0], value]);
      pen.fillRect(MARGIN.left - 4, y, 4, 1);
      pen.fillText(number(value, up.digits), MARGIN.left - 7, y + 4);
    }
    pen.save();
    pen.translate(12, MARGIN.top + height / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText(names[1], 0, 0);
    pen.restore();
  }

  drawContours(pen) {
    pen.strokeStyle = colour("--soft");
    for (const { share, lines } of this.panel.contours) {
      pen.lineWidth = share > 0.9 ? 0.75 : 1.25;
      for (const line of lines) {
        pen.beginPath();
        for (let at = 0; at < line.length; at += 2) pen.lineTo(...this.toPixels([line[at], line[at + 1]]));
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
      this.disc(pen, plane[at], radius);
    }
    pen.globalAlpha = 1;
  }

  drawPseudoInputs(pen) {
    const { pseudo, selected } = this.panel;
    if (!pseudo) return;
    pen.globalAlpha = 0.8;
    Object.assign(pen, { strokeStyle: colour("--text"), fillStyle: colour("--text"), lineWidth: 1 });
    const size = clipped(60 / Math.sqrt(pseudo.plane.length), 2.5, 4); // many large ones would hide the test images
    for (const point of pseudo.plane) this.plus(pen, point, size);
    pen.globalAlpha = 1;
    if (selected === null) return;
    const [first, end] = [selected * pseudo.perInput, (selected + 1) * pseudo.perInput];
    for (const point of pseudo.drawsPlane.slice(first, end)) this.disc(pen, point, 2.5);
    Object.assign(pen, { strokeStyle: colour("--accent"), lineWidth: 3 });
    this.plus(pen, pseudo.plane[selected], 9);
  }

  disc(pen, point, radius) {
    pen.beginPath();
    pen.arc(...this.toPixels(point), radius, 0, 2 * Math.PI);
    pen.fill();
  }

  plus(pen, point, size) {
    const [x, y] = this.toPixels(point);
    pen.beginPath();
    pen.moveTo(x - size, y);
    pen.lineTo(x + size, y);
    pen.moveTo(x, y - size);
    pen.lineTo(x, y + size);
    pen.stroke();
  }
}
