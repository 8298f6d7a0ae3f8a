import { afterEach, expect, test, vi } from "vitest";
import { Backoff, hinted, isFinal, retryAfter } from "../src/backoff.js";

afterEach(() => void vi.restoreAllMocks());

test("times are drawn from all up to a bound that starts at 150 ms and grows", () => {
  vi.useFakeTimers();
  const random = vi.spyOn(Math, "random").mockReturnValue(0.999999);
  const backoff = new Backoff(150, 30_000);
  const most = Array.from({ length: 17 }, () => {
    const time = Math.round(backoff.next());
    vi.advanceTimersByTime(time);
    return time;
  });
  // In the first five seconds, to 600 ms at most.
  expect(most.slice(0, 11)).toEqual([150, 300, ...new Array<number>(9).fill(600)]);
  expect(most.slice(11)).toEqual([1200, 2400, 4800, 9600, 19200, 30000]);
  backoff.reset();
  expect(Math.round(backoff.next())).toBe(150);
  random.mockReturnValue(0);
  expect([backoff.next(), backoff.next(), backoff.next()]).toEqual([0, 0, 0]);
  vi.useRealTimers();
});

test("times are spread evenly over what is possible", () => {
  const tenths = new Array<number>(10).fill(0);
  for (let n = 0; n < 10_000; n++) {
    const tenth = Math.floor(new Backoff(150, 30_000).next() / 15);
    tenths[tenth] = tenths[tenth]! + 1;
  }
  for (const tenth of tenths) expect(tenth).toBeGreaterThan(800);
});

test("only close frames of 1012 and 1013 hint", () => {
  expect(hinted(1012, "the server ends; retry-after-ms=1234")).toBe(1234);
  expect(hinted(1013, "busy, retry-after-ms=0")).toBe(0);
  expect(hinted(1012, "retry-after-ms=99999999999999")).toBe(2 ** 31 - 1);
  expect(hinted(1012, "retry-after-ms=12 or so")).toBeUndefined();
  expect(hinted(1012, "")).toBeUndefined();
  expect(hinted(1000, "retry-after-ms=1")).toBeUndefined();
});

test("Retry-After is seconds or a date", () => {
  expect(retryAfter("3")).toBe(3000);
  expect(retryAfter(new Date(Date.now() + 10_000).toUTCString())).toBeGreaterThan(8000);
  expect(retryAfter("Thu, 01 Jan 1970 00:00:00 GMT")).toBe(0);
  expect(retryAfter("soon")).toBeUndefined();
  expect(retryAfter("")).toBeUndefined();
});

test("what will be refused again is final", () => {
  expect([1000, 1001, 1006, 1009, 1011, 1012, 1013].some((code) => isFinal(code))).toBe(false);
  expect([429, 500, 502, 503].some((status) => isFinal(1006, status))).toBe(false);
  expect([400, 401, 403, 421].every((status) => isFinal(1006, status))).toBe(true);
  expect(isFinal(1008)).toBe(true);
});
