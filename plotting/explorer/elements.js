// What the other files share: numbers, elements, pictures and words for screen readers.

const ANNOUNCE_DELAY = 400; // milliseconds after the last key or click until a screen reader is told

const range = (count) => Array.from({ length: count }, (_, at) => at);
const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
const clipped = (value, low, high) => Math.min(Math.max(value, low), high);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The Float32Array whose little-endian bytes `text` holds in base64. */
function floats(text) {
  return new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

/** The same array as a list of rows of `width` numbers. */
function rows(text, width) {
  const all = floats(text);
  return range(all.length / width).map((row) => all.subarray(row * width, (row + 1) * width));
}

/** A number as text, with a true minus sign. */
function number(value, digits = 2) {
  return value.toFixed(digits).replace("-", "\u2212");
}

/** Integers from 0 to count - 1 in a pseudo-random order, always the same one for a count. */
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

/** A copy of the content of the <template> with this id. */
function clone(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

/** A new HTML element. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Draws a picture on a canvas: numbers in [0, 1], channels last, of which there are 1 or 3. */
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

/** Many pictures of one size, in one image file. */
class Sprite {
  static async load(properties) {
    const sprite = Object.assign(new Sprite(), properties, { image: new Image() });
    sprite.image.src = sprite.url;
    await sprite.image.decode();
    return sprite;
  }

  /** Draws one of the pictures on a canvas and returns the canvas's context. */
  draw(canvas, index, options) {
    const { columns, height, width } = this;
    Object.assign(canvas, { width, height });
    const [left, top] = [(index % columns) * width, Math.floor(index / columns) * height];
    const pen = canvas.getContext("2d", options);
    pen.drawImage(this.image, left, top, width, height, 0, 0, width, height);
    return pen;
  }

  /** A new canvas with one of the pictures. */
  canvas(index) {
    const canvas = element("canvas");
    this.draw(canvas, index);
    return canvas;
  }

  /** The bytes of one of the pictures, channels last. */
  bytes(index, channels) {
    const pen = this.draw(element("canvas"), index, { willReadFrequently: true });
    const { data } = pen.getImageData(0, 0, this.width, this.height);
    return Uint8Array.from({ length: this.width * this.height * channels }, (_, at) =>
      data[4 * Math.floor(at / channels) + (at % channels)],
    );
  }
}

/** Puts buttons into a group. The Tab key stops at the group once; arrow keys move between its buttons. */
function roving(group, buttons) {
  buttons.forEach((button, at) => {
    button.tabIndex = at === 0 ? 0 : -1;
    button.addEventListener("focus", () => buttons.forEach((one) => (one.tabIndex = one === button ? 0 : -1)));
    button.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const ends = { Home: buttons[0], End: buttons.at(-1) };
      const to = ends[event.key] ?? (move && buttons.at((at + move) % buttons.length));
      if (!to) return;
      event.preventDefault();
      to.focus();
    });
  });
  group.replaceChildren(...buttons);
}

let announcement;

/** Makes a screen reader read what `words()` returns, once no further announcement has come for a moment. */
function announce(words) {
  clearTimeout(announcement);
  announcement = setTimeout(() => (document.querySelector(".status").textContent = words()), ANNOUNCE_DELAY);
}
