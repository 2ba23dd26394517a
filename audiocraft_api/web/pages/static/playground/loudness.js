const BLOCK_SECONDS = 0.4;
const ABSOLUTE_GATE = -70; // LUFS
const RELATIVE_GATE = -10; // LU

/** Return the integrated loudness of channels in LUFS (ITU-R BS.1770-4), -Infinity for silence. */
export function loudnessOf(channels, sampleRate) {
  const powers = blockPowers(
    channels.map((samples) => weighted(samples, sampleRate)),
    sampleRate,
  );
  const loud = powers.filter((power) => toLufs(power) > ABSOLUTE_GATE);
  const threshold = toLufs(mean(loud)) + RELATIVE_GATE;
  return toLufs(mean(loud.filter((power) => toLufs(power) > threshold)));
}

/** Return the gains that make clips equally loud. They only attenuate, so nothing can clip. */
export function matchingGains(levels) {
  const audible = levels.filter(Number.isFinite);
  if (!audible.length) return levels.map(() => 1);
  const target = Math.min(...audible);
  return levels.map((level) => (Number.isFinite(level) ? 10 ** ((target - level) / 20) : 1));
}

const toLufs = (power) => -0.691 + 10 * Math.log10(power);
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0);

function blockPowers(channels, sampleRate) {
  const length = Math.min(channels[0].length, Math.round(BLOCK_SECONDS * sampleRate));
  const step = Math.max(1, Math.floor(length / 4));
  const powers = [];
  for (let start = 0; start + length <= channels[0].length; start += step) {
    let power = 0;
    for (const samples of channels) {
      let sum = 0;
      for (let i = start; i < start + length; i++) sum += samples[i] ** 2;
      power += sum / length;
    }
    powers.push(power);
  }
  return powers;
}

/** Apply the K weighting: a high shelf for the head, then a high-pass, with the standard's analog prototypes. */
function weighted(samples, sampleRate) {
  const shelf = coefficients(1681.974450955533, 0.7071752369554196, sampleRate, (k, q, norm) => {
    const high = 10 ** (3.999843853973347 / 20);
    const band = high ** 0.4996667741545416;
    return [
      (high + (band * k) / q + k * k) / norm,
      (2 * (k * k - high)) / norm,
      (high - (band * k) / q + k * k) / norm,
    ];
  });
  const highPass = coefficients(38.13547087602444, 0.5003270373238773, sampleRate, () => [1, -2, 1]);
  return filtered(filtered(samples, shelf), highPass);
}

function coefficients(frequency, q, sampleRate, numerator) {
  const k = Math.tan((Math.PI * frequency) / sampleRate);
  const norm = 1 + k / q + k * k;
  return {b: numerator(k, q, norm), a1: (2 * (k * k - 1)) / norm, a2: (1 - k / q + k * k) / norm};
}

function filtered(samples, {b, a1, a2}) {
  const output = new Float64Array(samples.length);
  let [x1, x2, y1, y2] = [0, 0, 0, 0];
  for (let i = 0; i < samples.length; i++) {
    const y = b[0] * samples[i] + b[1] * x1 + b[2] * x2 - a1 * y1 - a2 * y2;
    [x2, x1, y2, y1] = [x1, samples[i], y1, y];
    output[i] = y;
  }
  return output;
}
