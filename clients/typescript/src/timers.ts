// Timers that fire in time in a page in the background, and a clock that notices sleep.

/** How often the clock is looked at; a socket is tried within this time after waking. */
const TICK = 500;
/** A clock that has jumped by more than this, over a tick, means sleep. */
const SLEPT = 1500;

/** A browser throttles a hidden page's timers, but not those of a worker. */
const SOURCE = "onmessage=({data:[i,ms]})=>setTimeout(postMessage,ms,i)";

let worker: Worker | null | undefined;
let last = 0;
const pending = new Map<number, () => void>();

function helper(): Worker | null {
  if (worker === undefined) {
    worker = null;
    try {
      if (typeof document === "object") {
        const source = new Blob([SOURCE], { type: "text/javascript" });
        worker = new Worker(URL.createObjectURL(source));
        worker.onmessage = ({ data }) => pending.get(data as number)?.();
        // Of a content security policy, for example; the page's own timers remain.
        worker.onerror = () => (worker = null);
      }
    } catch {
      // The same.
    }
  }
  return worker;
}

/** Run something after `ms`, by the page's timer or the worker's, whichever fires first. */
export function after(ms: number, run: () => void): () => void {
  const id = ++last;
  const fire = () => {
    cancel();
    run();
  };
  const timer = setTimeout(fire, ms);
  const cancel = () => {
    clearTimeout(timer);
    pending.delete(id);
  };
  pending.set(id, fire);
  helper()?.postMessage([id, ms]);
  return cancel;
}

const sleepers = new Set<() => void>();
let stop: (() => void) | undefined;

function tick(): void {
  const began = Date.now();
  stop = after(TICK, () => {
    tick();
    if (Date.now() - began > TICK + SLEPT) {
      for (const woke of [...sleepers]) woke();
    }
  });
}

/** Call `woke` after the machine, browser or page has slept; returns what ends that. */
export function onSleep(woke: () => void): () => void {
  sleepers.add(woke);
  if (!stop) tick();
  return () => {
    sleepers.delete(woke);
    if (sleepers.size === 0) {
      stop?.();
      stop = undefined;
    }
  };
}
