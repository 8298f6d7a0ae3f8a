// The client in Node against the real server.
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, afterEach, describe, expect, test } from "vitest";
import WebSocket from "ws";
import { Client, type Gap, type Options, type Url } from "../../src/index.js";
import { Gate } from "./gate.js";
import { Server, atEnd, endAll, hasRedis, hasServer, startRedis, until } from "./processes.js";

/** npm's `ws`, also where Node has a WebSocket: it tells more. Compression is no subject here. */
const Ws = class extends WebSocket {
  constructor(url: string, protocols?: string[]) {
    super(url, protocols, { perMessageDeflate: false });
  }
};
const NATIVE = fileURLToPath(new URL("native.mjs", import.meta.url));
const CLIENTS = Number(process.env["WS_GUARD_CLIENTS"] ?? 1000);

const clients: Client[] = [];

/** A client, and what it was told. */
function join(url: Url, options: Options = {}) {
  const client = new Client(url, { WebSocket: Ws, ...options });
  clients.push(client);
  const told = { data: [] as unknown[], gaps: [] as Gap[], opened: [] as number[], waited: [] as number[] };
  client.on("message", ({ data }) => told.data.push(data));
  client.on("gap", (gap) => told.gaps.push(gap));
  client.on("state", ({ state }) => {
    if (state === "open") told.opened.push(performance.now());
    if (state === "waiting") told.waited.push(performance.now());
  });
  return { client, ...told };
}

async function stage() {
  const server = await new Server().start();
  const gate = await Gate.before(() => server.port);
  atEnd(() => gate.close());
  return { server, gate };
}

const numbers = (count: number) => Array.from({ length: count }, (_, n) => n);

afterEach(() => {
  for (const client of clients.splice(0)) client.close();
});
afterAll(endAll);

describe.skipIf(!hasServer)("with the real server", () => {
  test("connections that are cut lose and repeat nothing", async () => {
    const { server, gate } = await stage();
    const publisher = join(server.url);
    const follower = join(gate.url);
    await follower.client.subscribe("chat", () => {}).ready;
    const stored: Promise<unknown>[] = [];
    for (const n of numbers(40)) {
      stored.push(publisher.client.publish("chat", n));
      if (n % 10 === 9) {
        await Promise.all(stored);
        const before = follower.opened.length;
        gate.cut();
        await until("it is back", () => follower.opened.length > before);
      }
    }
    await until("all is there", () => follower.data.length >= 40);
    expect(follower.data).toEqual(numbers(40));
    expect(follower.gaps).toEqual([]);
    // Each time at the first attempt.
    expect([follower.opened.length, follower.waited.length]).toEqual([5, 4]);
  });

  test("a publisher whose connections are cut stores everything once", async () => {
    const { server, gate } = await stage();
    const follower = join(server.url);
    const publisher = join(gate.url, { outbox: { inFlight: 4 } });
    await follower.client.subscribe("chat", () => {}).ready;
    await until("it is connected", () => publisher.client.state === "open");
    const stored: Promise<unknown>[] = [];
    for (const n of numbers(40)) {
      stored.push(publisher.client.publish("chat", n));
      // While some are on their way.
      if (n % 10 === 9) {
        await stored[n - 5];
        gate.cut();
      }
    }
    await Promise.all(stored);
    await until("all is there", () => follower.data.length >= 40);
    expect(follower.data).toEqual(numbers(40));
  });

  test("a way that falls silent is noticed, and nothing is lost", async () => {
    const { server, gate } = await stage();
    const timing = { heartbeat: 400, answer: 300 };
    const publisher = join(server.url);
    const follower = join(gate.url, { timing });
    await follower.client.subscribe("chat", () => {}).ready;
    await publisher.client.publish("chat", 0);
    gate.silence();
    await publisher.client.publish("chat", 1);
    await until("the rest is there", () => follower.data.length >= 2);
    expect(follower.data).toEqual([0, 1]);
    expect(follower.gaps).toEqual([]);
  });

  test("a server that is killed and comes back tells that its history is gone", async () => {
    const { server } = await stage();
    const follower = join(server.url);
    await follower.client.subscribe("chat", () => {}).ready;
    await follower.client.publish("chat", 0);
    await until("it is there", () => follower.data.length === 1);
    await server.end();
    await until("it is noticed", () => follower.client.state !== "open");
    // Kept until there is a server again.
    const stored = follower.client.publish("chat", 1);
    await server.start();
    const back = performance.now();
    await stored;
    await until("it is there", () => follower.data.length === 2);
    console.log(`back ${ms(follower.opened.at(-1)! - back)} after the server listens again`);
    expect(follower.data).toEqual([0, 1]);
    expect(follower.gaps).toMatchObject([{ topic: "chat", from: { offset: 1 } }]);
  });

  test("a server that is stopped for a while is waited for or left, and nothing is lost", async () => {
    const { server } = await stage();
    const timing = { heartbeat: 400, answer: 300, connect: 1000 };
    const follower = join(server.url, { timing });
    await follower.client.subscribe("chat", () => {}).ready;
    await follower.client.publish("chat", 0);
    server.signal("SIGSTOP");
    const stored = follower.client.publish("chat", 1);
    await until("it is noticed", () => follower.client.state !== "open");
    server.signal("SIGCONT");
    await stored;
    await until("all is there", () => follower.data.length >= 2);
    expect(follower.data).toEqual([0, 1]);
    expect(follower.gaps).toEqual([]);
  });

  test.skipIf(!hasRedis)("of two servers, one that is killed takes nothing with it", async () => {
    const bus = ["--bus", await startRedis()];
    const servers = [new Server(undefined, undefined, bus), new Server(undefined, undefined, bus)];
    for (const server of servers) await server.start();
    const [first, second] = servers as [Server, Server];
    // As a balancer does that notices a dead server.
    let alive = first;
    const moving = numbers(20).map(() => join(() => alive.url));
    await Promise.all(moving.map(({ client }) => client.subscribe("chat", () => {}).ready));
    const publisher = moving[0]!.client;
    const stored = numbers(10).map((n) => publisher.publish("chat", n));
    await stored[4];
    alive = second;
    await first.end();
    const since = performance.now();
    for (const n of numbers(10)) stored.push(publisher.publish("chat", 10 + n));
    await Promise.all(stored);
    await until("all is there", () => moving.every(({ data }) => data.length >= 20));
    for (const { data, gaps } of moving) {
      expect(data).toEqual(numbers(20));
      expect(gaps).toEqual([]);
    }
    const last = Math.max(...moving.map(({ opened }) => opened.at(-1)! - since));
    console.log(`server killed, another is there: the last of 20 clients is back after ${ms(last)}`);
  });

  test("Node's own WebSocket does as well, and nothing is left that keeps Node running", async () => {
    const { server } = await stage();
    const words = [process.execPath, "--no-warnings", "--experimental-websocket", NATIVE, server.url];
    const said = await promisify(execFile)(words[0]!, words.slice(1), { timeout: 30_000 });
    expect(JSON.parse(said.stdout)).toEqual({ data: "hello", offset: 1 });
  });

  test("what the server refuses is told", async () => {
    const { server } = await stage();
    const { client } = join(server.url);
    await expect(client.publish("chat", null)).rejects.toMatchObject({ status: 400 });
    await expect(client.subscribe("x".repeat(129), () => {}).ready).rejects.toMatchObject({ status: 400 });
    expect(client.state).toBe("open");
  });

  test.skipIf(!hasRedis)(`${CLIENTS} clients that are refused for 2 s come back, with everything`, async () => {
    const bus = ["--bus", await startRedis()];
    const [first, second] = [new Server(undefined, undefined, bus), new Server(undefined, undefined, bus)];
    for (const server of [first, second]) await server.start();
    const publisher = join(second.url);
    const begun = performance.now();
    const followers = numbers(CLIENTS).map(() => join(first.url));
    await Promise.all(followers.map(({ client }) => client.subscribe("chat", () => {}).ready));
    console.log(`connected at first after ${ms(performance.now() - begun)}, all at once`);
    await publisher.client.publish("chat", 0);
    await until("all have the first", () => followers.every(({ data }) => data.length === 1));
    await first.end();
    const cut = performance.now();
    for (const n of numbers(20).slice(1)) await publisher.client.publish("chat", n);
    await until("all are gone", () => followers.every(({ client }) => client.state !== "open"));
    await until("it was away for 2 s", () => performance.now() - cut > 2000);
    await first.start();
    const open = performance.now();
    const all = () => followers.every(({ data }) => data.length >= 20);
    await until("all have all", all, 55);
    for (const { data, gaps } of followers) {
      expect(data).toEqual(numbers(20));
      expect(gaps).toEqual([]);
    }
    const times = followers.map(({ opened }) => opened.at(-1)! - open).sort((a, b) => a - b);
    const [median, late] = [0.5, 0.99].map((part) => times[Math.floor(part * times.length)]!);
    console.log(`back after ${ms(median!)} (median), ${ms(late!)} (p99), ${ms(times.at(-1)!)} (last)`);
  });
});

const ms = (time: number) => `${Math.round(time)} ms`;
