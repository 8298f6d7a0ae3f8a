/** Longest time that a timer can wait. */
const LONGEST = 2 ** 31 - 1;

/** After this the bound grows on; a server that starts again, or another one, is there sooner. */
const EARLY = 5000;

/**
 * Exponential back-off with full jitter: each time is drawn from all up to a bound.
 *
 * The bound doubles twice, and again once the first failure is five seconds ago.
 */
export class Backoff {
  #failures = 0;
  #since = 0;

  constructor(
    readonly first: number,
    readonly most: number,
  ) {}

  /** How long to wait after one more failure. */
  next(): number {
    const now = Date.now();
    const bound = Math.min(this.most, this.first * 2 ** this.#failures);
    if (!this.#failures) this.#since = now;
    if (this.#failures < 2 || now - this.#since > EARLY) this.#failures++;
    return Math.random() * bound;
  }

  reset(): void {
    this.#failures = 0;
  }
}

/** The time to wait that a close frame of a server that ends (1012) or is busy (1013) names. */
export function hinted(code: number, reason: string): number | undefined {
  const hint = /retry-after-ms=(\d+)\s*$/.exec(reason)?.[1];
  return (code === 1012 || code === 1013) && hint ? Math.min(+hint, LONGEST) : undefined;
}

/** The time to wait that a field `Retry-After` names, in seconds or as a date. */
export function retryAfter(value: string | undefined): number | undefined {
  if (!value) return undefined;
  const ms = /^\s*\d+\s*$/.test(value) ? +value * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.min(Math.max(ms, 0), LONGEST);
}

/** Whether a refusal will be the same next time: `code` of a close frame, or `status` of HTTP. */
export function isFinal(code: number, status?: number): boolean {
  return code === 1008 || [400, 401, 403, 421].includes(status ?? 0);
}
