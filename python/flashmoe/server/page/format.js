// Numbers as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["B", "KB", "MB", "GB", "TB"];

export function count(value) {
  return whole.format(value);
}

export function bytes(value) {
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? count(value) : rate(value)} ${UNITS[unit]}`;
}

export function rate(value) {
  return value >= 99.5 ? count(value) : value.toPrecision(value >= 9.95 ? 3 : 2);
}

export function seconds(value) {
  if (value < 1) return `${Math.round(1000 * value)} ms`;
  if (value < 60) return `${Math.round(value)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value) % 60} s`;
}

/** Rounded down: only all of them are 100 %. */
function percent(value) {
  const finer = value > 0.99 ? 10 : 1;
  return `${Math.floor(100 * finer * value) / finer} %`;
}

/** The line below an answer, as far as the server said it. */
export function statistics(usage, timings) {
  const parts = [];
  const add = (value, text) => Number.isFinite(value) && parts.push(text(value));
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  add(timings?.tokens_per_second || undefined, (value) => `${rate(value)} tok/s`);
  add(usage?.completion_tokens, (value) => `${count(value)} tokens`);
  add(usage?.prompt_tokens, (value) => `prompt ${count(value)}${cached ? `, ${count(cached)} cached` : ""}`);
  add(timings?.time_to_first_token, (value) => `first after ${seconds(value)}`);
  add(timings?.expert_hit_rate, (value) => `${percent(value)} expert hits`);
  add(timings?.bytes_read, (value) => `${bytes(value)} read`);
  return parts;
}
