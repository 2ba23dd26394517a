const SMALLEST_SHARE = 0.05;

/** Estimates the remaining seconds of a generation from the speed since its first progress. */
export class Eta {
  #first = null;

  /** Return the remaining seconds, or null while too little is known. */
  of(current, total, now = performance.now()) {
    if (!total) return null;
    this.#first ??= {current, now};
    const done = current - this.#first.current;
    if (done < SMALLEST_SHARE * total) return null;
    return ((total - current) * (now - this.#first.now)) / done / 1000;
  }
}
