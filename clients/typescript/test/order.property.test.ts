// Whatever happens on the way: in order, once, and nothing missing that is not told.
import fc from "fast-check";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Client, type Gap, type Message, type Position } from "../src/index.js";
import { Model } from "./model.js";
import { Network } from "./socket.js";
import { pass, sleep } from "./stage.js";

const CASES = Number(process.env["WS_GUARD_CASES"] ?? 150);
const SEED = process.env["WS_GUARD_SEED"];
const TOPICS = ["a", "b"];

const topic = fc.constantFrom(...TOPICS);
const few = fc.integer({ min: 1, max: 6 });

/** What happens without anything being lost for good. */
const harmless = [
  fc.record({ what: fc.constant("published elsewhere" as const), topic, count: few }),
  fc.record({ what: fc.constant("publish" as const), topic, count: few }),
  fc.record({ what: fc.constant("pass" as const), ms: fc.integer({ min: 1, max: 30_000 }) }),
  fc.record({ what: fc.constant("pass" as const), ms: fc.integer({ min: 1, max: 100 }) }),
  fc.record({ what: fc.constant("cut" as const), code: fc.constantFrom(1001, 1006, 1011, 1012) }),
  fc.record({ what: fc.constant("silence" as const) }),
  fc.record({ what: fc.constant("sleep" as const), ms: fc.integer({ min: 1, max: 600_000 }) }),
  fc.record({ what: fc.constant("network" as const), mode: fc.constantFrom("up" as const, "silent" as const, "refuse" as const) }),
  fc.record({ what: fc.constant("turn" as const), topic }),
  fc.record({ what: fc.constant("overflow" as const), topic, count: few }),
  fc.record({ what: fc.constant("busy" as const), status: fc.constantFrom(429, 503), ms: few }),
  fc.record({ what: fc.constant("tokens" as const), known: fc.boolean() }),
];

/** What loses publications on the server. */
const harmful = [
  fc.record({ what: fc.constant("forget" as const), topic, count: few }),
  fc.record({ what: fc.constant("trim" as const), kept: few }),
];

type Step = typeof harmless extends fc.Arbitrary<infer One>[] ? One : never;
type Harm = typeof harmful extends fc.Arbitrary<infer One>[] ? One : never;

/** A world in which one client follows and publishes, and all that it is told is written down. */
class World {
  readonly model = new Model();
  readonly network = new Network(this.model);
  readonly client = new Client("ws://server", { WebSocket: this.network.WebSocket });
  /** Every publication there ever was. */
  readonly archive = new Map<string, unknown>();
  readonly told = new Map<string, (Message | Gap)[]>(TOPICS.map((topic) => [topic, []]));
  readonly stored: Promise<void>[] = [];
  /** What was published, to be found exactly once. */
  readonly own: string[] = [];
  #count = 0;

  constructor() {
    const publish = this.model.publish.bind(this.model);
    this.model.publish = (topic, data, key) => {
      const entry = publish(topic, data, key);
      if (!entry.repeated) this.archive.set(place(topic, entry), entry.data);
      return entry;
    };
    this.client.on("message", (message) => this.told.get(message.topic)?.push(message));
    this.client.on("gap", (gap) => this.told.get(gap.topic)?.push(gap));
    for (const topic of TOPICS) this.client.subscribe(topic, () => {});
  }

  async do(step: Step | Harm): Promise<void> {
    const { last } = this.network;
    switch (step.what) {
      case "published elsewhere":
        for (let n = 0; n < step.count; n++) this.model.publish(step.topic, this.#next());
        return;
      case "publish":
        for (let n = 0; n < step.count; n++) this.#publish(step.topic);
        return;
      case "pass":
        return pass(step.ms);
      case "cut":
        return last.closed ? undefined : last.cut(step.code);
      case "silence":
        return void (last.silent = true);
      case "sleep":
        return sleep(step.ms);
      case "network":
        return void (this.network.mode = step.mode);
      case "turn":
        return this.model.turn(step.topic);
      case "overflow":
        if (last.peer && !last.closed && last.peer.topics.has(step.topic)) {
          this.model.overflow(last.peer, step.topic, step.count);
        }
        return;
      case "busy":
        return void this.model.refusals.push({ status: step.status, retry_after_ms: step.ms * 500 });
      case "tokens":
        return void (this.model.tokens = step.known);
      case "forget":
        return this.model.forget(step.topic, step.count);
      case "trim":
        return void (this.model.kept = step.kept);
    }
  }

  /** Everything works again, and a last message of each topic shows what is missing. */
  async settle(): Promise<void> {
    this.network.mode = "up";
    await pass(120_000);
    for (const topic of TOPICS) this.model.publish(topic, this.#next());
    await pass(30_000);
    await Promise.all(this.stored);
  }

  check(lossy: boolean): void {
    expect(this.client.pending).toBe(0);
    for (const [topic, told] of this.told) {
      this.#checkTopic(topic, told);
      if (!lossy) expect(told.filter((one) => !("data" in one))).toEqual([]);
    }
    const all = [...this.archive.values()];
    if (!lossy) for (const own of this.own) expect(all.filter((data) => data === own)).toEqual([own]);
  }

  #checkTopic(topic: string, told: (Message | Gap)[]): void {
    let at: Position = { epoch: "", offset: 0 };
    const seen = new Set<string>();
    for (const one of told) {
      if ("data" in one) {
        const { position, data } = one;
        expect(position!.offset).toBe(at.offset + 1);
        expect(seen.has(place(topic, position!))).toBe(false);
        expect(data).toBe(this.archive.get(place(topic, position!)));
        seen.add(place(topic, position!));
        at = position!;
      } else {
        expect(one.from?.offset).toBe(at.offset);
        at = one.to!;
      }
    }
    const { epoch, offset } = this.model.topic(topic);
    expect(at).toEqual({ epoch, offset });
  }

  #publish(topic: string): void {
    const data = this.#next();
    this.own.push(data);
    const kept = this.client.publish(topic, data).then(({ position }) => {
      expect(this.archive.get(place(topic, position!))).toBe(data);
    });
    kept.catch(() => {});
    this.stored.push(kept);
  }

  #next(): string {
    return `m${++this.#count}`;
  }
}

const place = (topic: string, { epoch, offset }: Position) => `${topic} ${epoch} ${offset}`;

/** Chance that is the same for the same case. */
function seedChance(seed: number): void {
  let state = seed >>> 0;
  vi.spyOn(Math, "random").mockImplementation(() => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  });
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

async function run(seed: number, steps: (Step | Harm)[], lossy: boolean): Promise<void> {
  seedChance(seed);
  const world = new World();
  try {
    // The subscriptions begin at nothing.
    await pass(200);
    for (const step of steps) await world.do(step);
    await world.settle();
    world.check(lossy);
  } finally {
    world.client.close();
    vi.clearAllTimers();
  }
}

const settings = { numRuns: CASES, ...(SEED && { seed: Number(SEED) }) };

test("without loss on the server, all is delivered in order, once, without a gap", { timeout: 600_000 }, () =>
  fc.assert(
    fc.asyncProperty(fc.nat(), fc.array(fc.oneof(...harmless), { maxLength: 40 }), (seed, steps) =>
      run(seed, steps, false),
    ),
    settings,
  ),
);

test("with loss on the server, every gap is told, and the rest is in order, once", { timeout: 600_000 }, () =>
  fc.assert(
    fc.asyncProperty(
      fc.nat(),
      fc.array(fc.oneof(...harmless, ...harmful), { maxLength: 40 }),
      (seed, steps) => run(seed, steps, true),
    ),
    settings,
  ),
);
