import { afterEach, beforeEach, expect, test, vi } from "vitest";

/** A worker that keeps time while the page's timers do not fire. */
class FakeWorker {
  static all: FakeWorker[] = [];
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onerror: (() => void) | null = null;
  asked: [number, number][] = [];

  constructor(readonly url: string) {
    FakeWorker.all.push(this);
  }

  postMessage(message: [number, number]): void {
    this.asked.push(message);
  }
}

beforeEach(() => {
  vi.resetModules();
  vi.useFakeTimers();
  FakeWorker.all = [];
  vi.stubGlobal("document", {});
  vi.stubGlobal("Worker", FakeWorker);
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test("the worker's timer is enough, and fires once", async () => {
  const { after } = await import("../src/timers.js");
  const fired = vi.fn();
  after(5000, fired);
  const [worker] = FakeWorker.all;
  expect(worker?.asked).toEqual([[1, 5000]]);
  worker?.onmessage?.({ data: 1 });
  worker?.onmessage?.({ data: 1 });
  await vi.advanceTimersByTimeAsync(10_000);
  expect(fired).toHaveBeenCalledTimes(1);
});

test("a cancelled timer does not fire, whoever kept it", async () => {
  const { after } = await import("../src/timers.js");
  const fired = vi.fn();
  after(5000, fired)();
  FakeWorker.all[0]?.onmessage?.({ data: 1 });
  await vi.advanceTimersByTimeAsync(10_000);
  expect(fired).not.toHaveBeenCalled();
});

test("where a worker is not allowed, the page's timers remain", async () => {
  vi.stubGlobal("Worker", class {
    constructor() {
      throw new Error("SecurityError");
    }
  });
  const { after } = await import("../src/timers.js");
  const fired = vi.fn();
  after(5000, fired);
  await vi.advanceTimersByTimeAsync(5000);
  expect(fired).toHaveBeenCalledTimes(1);
});

test("a worker that fails is not asked again", async () => {
  const { after } = await import("../src/timers.js");
  after(10, () => {});
  const [worker] = FakeWorker.all;
  worker?.onerror?.();
  after(10, () => {});
  expect(worker?.asked).toHaveLength(1);
  expect(FakeWorker.all).toHaveLength(1);
});

test("the worker's source keeps time", async () => {
  const created = vi.spyOn(URL, "createObjectURL");
  const { after } = await import("../src/timers.js");
  after(1, () => {});
  const source = await (created.mock.calls[0]?.[0] as Blob).text();
  const posted = vi.fn();
  const run = new Function("postMessage", `let onmessage; ${source}; return onmessage`);
  (run(posted) as (event: unknown) => void)({ data: [7, 300] });
  await vi.advanceTimersByTimeAsync(299);
  expect(posted).not.toHaveBeenCalled();
  await vi.advanceTimersByTimeAsync(1);
  expect(posted).toHaveBeenCalledWith(7);
});

test("a clock that jumps means sleep, one that runs does not", async () => {
  const { onSleep } = await import("../src/timers.js");
  const woke = vi.fn();
  const end = onSleep(woke);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(woke).not.toHaveBeenCalled();
  vi.setSystemTime(Date.now() + 3_600_000);
  await vi.advanceTimersByTimeAsync(500);
  expect(woke).toHaveBeenCalledTimes(1);
  end();
  expect(vi.getTimerCount()).toBe(0);
});
