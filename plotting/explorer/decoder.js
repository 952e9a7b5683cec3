// Computes the decoder: from the steps that decoder_steps.py lists, or by interpolation between decoded pictures.
// Arrays have channels last. The results of all steps are float32, as in the model.

const sigmoid = (value) => 1 / (1 + Math.exp(-value));
const [SELU_SCALE, SELU_ALPHA] = [1.0507009873554805, 1.6732632423543772];

const ACTIVATIONS = {
  linear: (value) => value,
  relu: (value) => Math.max(value, 0),
  tanh: Math.tanh,
  sigmoid,
  elu: (value) => (value > 0 ? value : Math.expm1(value)),
  selu: (value) => SELU_SCALE * (value > 0 ? value : SELU_ALPHA * Math.expm1(value)),
  silu: (value) => value * sigmoid(value),
  softplus: (value) => Math.max(value, 0) + Math.log1p(Math.exp(-Math.abs(value))),
  leaky_relu: (value) => (value > 0 ? value : 0.2 * value),
};

const activated = (step, values) =>
  step.activation === "linear" ? values : values.map(ACTIVATIONS[step.activation]);

/** Adds `value` times the `units` weights that begin at `from` to the outputs that begin at `to`. */
function addRow(outputs, to, value, weights, from, units) {
  for (let unit = 0; unit < units; unit += 1) outputs[to + unit] += value * weights[from + unit];
}

/** What each kind of step returns for its input, a Float32Array. */
const STEPS = {
  dense(step, input, weights) {
    const { inputs, units, at } = step;
    const outputs = weights.slice(at + inputs * units, at + inputs * units + units);
    input.forEach((value, row) => {
      if (value !== 0) addRow(outputs, 0, value, weights, at + row * units, units);
    });
    return activated(step, outputs);
  },

  // Each input pixel is spread over kernel x kernel output pixels, whose offset is that of the padding "same".
  conv(step, input, weights) {
    const { height, width, inputs, units, kernel, stride, at } = step;
    const [rows, columns, size] = [height * stride, width * stride, kernel * kernel * inputs * units];
    const before = Math.floor(Math.max(kernel - stride, 0) / 2);
    const outputs = new Float32Array(rows * columns * units);
    const bias = weights.subarray(at + size, at + size + units);
    for (let pixel = 0; pixel < rows * columns; pixel += 1) outputs.set(bias, pixel * units);
    const spread = (value, top, left, channel) => {
      for (let down = 0; down < kernel; down += 1) {
        const row = top + down;
        if (row < 0 || row >= rows) continue;
        for (let right = 0; right < kernel; right += 1) {
          const column = left + right;
          if (column < 0 || column >= columns) continue;
          const from = at + ((down * kernel + right) * inputs + channel) * units;
          addRow(outputs, (row * columns + column) * units, value, weights, from, units);
        }
      }
    };
    let next = 0;
    for (let row = 0; row < height; row += 1) {
      for (let column = 0; column < width; column += 1) {
        for (let channel = 0; channel < inputs; channel += 1, next += 1) {
          if (input[next] !== 0) spread(input[next], row * stride - before, column * stride - before, channel);
        }
      }
    }
    return activated(step, outputs);
  },

  gated(step, input, weights) {
    const gate = compute([step.gate], input, weights);
    return compute([step.linear], input, weights).map((value, at) => value * sigmoid(gate[at]));
  },

  parts(step, input, weights) {
    let start = 0;
    const outputs = step.parts.map(({ size, steps }) => {
      start += size;
      return compute(steps, input.subarray(start - size, start), weights);
    });
    return Float32Array.from(outputs.flatMap((output) => Array.from(output)));
  },
};

/** Applies steps one after another. */
function compute(steps, input, weights) {
  return steps.reduce((values, step) => STEPS[step.kind](step, values, weights), input);
}

/** The picture of z: a Float32Array of height * width * channels numbers in [0, 1]. */
function decode(decoder, z, [height, width, channels]) {
  const maps = compute(decoder.steps, Float32Array.from(z), decoder.weights);
  const each = maps.length / (height * width);
  return Float32Array.from({ length: height * width * channels }, (_, at) =>
    sigmoid(maps[Math.floor(at / channels) * each + (at % channels)]),
  );
}

/** Interpolates bilinearly at (x, y) in [0, 1] x [0, 1] between side x side tiles of bytes, row by row from below. */
function interpolated(tiles, side, x, y, length) {
  const [right, up] = [x, y].map((share) => Math.min(Math.max(share, 0), 1) * (side - 1));
  const [column, row] = [right, up].map((place) => Math.min(Math.floor(place), side - 2));
  const picture = new Float32Array(length);
  for (const [dy, dx] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
    const share = (1 - Math.abs(right - column - dx)) * (1 - Math.abs(up - row - dy));
    const tile = tiles[(row + dy) * side + column + dx];
    for (let at = 0; at < length; at += 1) picture[at] += (share * tile[at]) / 255;
  }
  return picture;
}
