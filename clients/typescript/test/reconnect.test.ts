import { expect, test, vi } from "vitest";
import { Client, type Socket } from "../src/index.js";
import { DELAY, Network } from "./socket.js";
import { pass, start, useClock } from "./stage.js";

useClock();

test("states are told in order", async () => {
  const { client, network, heard } = start();
  await pass(100);
  network.last.cut();
  await pass(1000);
  client.close();
  client.close();
  const states = heard.states.map(({ state }) => state);
  expect(states).toEqual(["open", "waiting", "connecting", "open", "closed"]);
});

test("the first attempt follows within 150 ms, later ones further apart", async () => {
  const { network, heard } = start();
  await pass(6000);
  network.mode = "refuse";
  network.last.cut();
  await pass(60_000);
  const delays = heard.states.flatMap(({ delay }) => delay ?? []);
  // Some of 300 ms, as long as the connection was lost only lately.
  expect([...new Set(delays)].slice(0, 8)).toEqual([75, 150, 300, 600, 1200, 2400, 4800, 9600]);
  expect(delays.filter((delay) => delay === 300).length).toBeGreaterThan(5);
  const began = network.sockets.map((socket) => socket.began);
  expect(began[1]! - began[0]!).toBe(6000 + 75);
});

test("a connection that lasts makes up for the failures before it", async () => {
  const { network, heard } = start();
  await pass(100);
  network.mode = "refuse";
  network.last.cut();
  await pass(10_000);
  network.mode = "up";
  await pass(20_000);
  expect(heard.states.at(-1)?.state).toBe("open");
  network.last.cut();
  expect(heard.states.at(-1)).toMatchObject({ state: "waiting", delay: 75 });
});

test("a server that accepts and hangs up at once is not hammered", async () => {
  const { network } = start();
  for (let n = 0; n < 600; n++) {
    await pass(100);
    if (!network.last.closed && network.last.peer) network.last.cut(1011);
  }
  expect(network.sockets.length).toBeLessThan(30);
});

test.each([1012, 1013])("%i with a hint waits for just that long", async (code) => {
  const { client, network, heard } = start();
  await pass(6000);
  network.last.cut(code, "come back, retry-after-ms=2500");
  expect(heard.states.at(-1)).toMatchObject({ state: "waiting", delay: 2500 });
  await pass(2499);
  expect(network.sockets).toHaveLength(1);
  await pass(1 + 2 * DELAY);
  expect(client.state).toBe("open");
});

test("1008 is final, until the application says otherwise", async () => {
  const { client, network, heard } = start();
  await pass(100);
  network.last.cut(1008, "not you");
  await pass(60_000);
  expect(network.sockets).toHaveLength(1);
  expect(heard.states.at(-1)).toMatchObject({ state: "closed", end: { code: 1008, reason: "not you" } });
  client.connect();
  await pass(100);
  expect(client.state).toBe("open");
});

type Heard = Parameters<NonNullable<Socket["on"]>>[1];

/** What npm's `ws` tells of an upgrade that was refused. */
function refusing(statusCode: number, headers: Record<string, string>) {
  const destroy = vi.fn();
  const made: object[] = [];
  const WebSocket = class {
    onopen = null;
    onmessage = null;
    onclose = null;
    onerror = null;
    constructor() {
      made.push(this);
    }
    send() {}
    close() {}
    on(_: string, heard: Heard) {
      setTimeout(() => heard({ destroy }, { statusCode, headers }), 10);
    }
  };
  return { WebSocket, destroy, made };
}

test.each([429, 503])("HTTP %i with Retry-After waits for that long", async (status) => {
  const { WebSocket, destroy, made } = refusing(status, { "retry-after": "7" });
  const client = new Client("ws://server", { WebSocket });
  await pass(10 + 6999);
  expect(made).toHaveLength(1);
  expect(destroy).toHaveBeenCalledTimes(1);
  await pass(1);
  expect(made).toHaveLength(2);
  client.close();
});

test.each([400, 401, 403, 421])("HTTP %i is final", async (status) => {
  const { WebSocket, made } = refusing(status, {});
  const client = new Client("ws://server", { WebSocket });
  await pass(60_000);
  expect(made).toHaveLength(1);
  expect(client.state).toBe("closed");
});

test("the URL is asked for before each attempt, and a failure of that is one more", async () => {
  let asked = 0;
  const url = async () => {
    if (++asked === 2) throw new Error("the login service is away");
    return `https://server/ws?access_token=${asked}`;
  };
  const { client, network, heard } = start(new Network(), {}, url);
  await pass(100);
  network.last.cut();
  await pass(2000);
  expect(client.state).toBe("open");
  const urls = network.sockets.map((socket) => socket.url);
  expect(urls).toEqual(["wss://server/ws?access_token=1", "wss://server/ws?access_token=3"]);
  expect(heard.states.some(({ end }) => end?.reason.includes("login service"))).toBe(true);
});

test("a URL may be relative to the page", async () => {
  vi.stubGlobal("location", { href: "https://example.org/a/page" });
  const { network } = start(new Network(), {}, "/ws");
  await pass(1);
  expect(network.last.url).toBe("wss://example.org/ws");
});

test("a close while the URL is asked for opens nothing", async () => {
  const { client, network } = start(new Network(), {}, async () => "ws://server");
  client.close();
  await pass(1000);
  expect(network.sockets).toHaveLength(0);
});

test("a listener that throws stops nothing, and its error is not lost", async () => {
  const thrown: unknown[] = [];
  vi.stubGlobal("queueMicrotask", (run: () => void) => {
    try {
      run();
    } catch (error) {
      thrown.push(error);
    }
  });
  const { client, model, heard } = start();
  client.subscribe("chat", () => {
    throw new Error("of the application");
  });
  await pass(100);
  model.publish("chat", 1);
  model.publish("chat", 2);
  await pass(100);
  expect(heard.messages).toEqual([1, 2]);
  expect(thrown).toHaveLength(2);
});

test("what is no message of the protocol is ignored", async () => {
  const { client, network, heard } = start();
  await pass(100);
  for (const data of ["", "7", "null", "[]", "{}", '{"type":7}', '{"type":"later"}', new ArrayBuffer(3)]) {
    network.last.onmessage?.({ data } as never);
  }
  network.last.peer?.say({ type: "error", error: "this is no request", status: 400 });
  await pass(100);
  expect(heard.errors.map(({ message, status }) => [message, status])).toEqual([["this is no request", 400]]);
  expect(client.state).toBe("open");
});
