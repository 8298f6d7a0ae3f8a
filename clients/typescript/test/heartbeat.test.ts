import { expect, test } from "vitest";
import { Network } from "./socket.js";
import { pass, sleep, start, useClock } from "./stage.js";

useClock();

const beats = (requests: { [field: string]: unknown }[]) =>
  requests.filter(({ type }) => type === "heartbeat").length;

test("heartbeats are sent all the time, and answered ones keep the connection", async () => {
  const { client, network } = start();
  await pass(10 * 60_000);
  expect(network.sockets).toHaveLength(1);
  expect(client.state).toBe("open");
  expect(beats(network.last.requests)).toBeGreaterThan(25);
});

test("a connection that only looks open is given up after interval and deadline", async () => {
  const { network, heard } = start();
  await pass(1000);
  network.last.silent = true;
  const before = Date.now();
  while (network.sockets.length === 1) await pass(100);
  expect(Date.now() - before).toBeLessThanOrEqual(20_000 + 5000 + 500);
  await pass(1000);
  const end = heard.states.find(({ state }) => state === "waiting")?.end;
  expect(end).toMatchObject({ cause: "answer", code: 1006 });
  expect(heard.states.at(-1)?.state).toBe("open");
});

test("what is given up is closed, and its late events change nothing", async () => {
  const { client, network } = start();
  await pass(100);
  const [first] = network.sockets;
  first!.silent = true;
  await pass(30_000);
  expect(first!.closed).toBe(true);
  expect(first!.onclose).toBeNull();
  expect(client.state).toBe("open");
});

test("messages on the way extend the deadline, but not for ever", async () => {
  const { network, model, client } = start();
  client.subscribe("chat", () => {});
  await pass(1000);
  const { peer } = network.last;
  model.obey = () => {};
  let n = 0;
  const busy = async (seconds: number) => {
    for (let s = 0; s < seconds; s++) {
      peer!.say({ type: "message", topic: "chat", epoch: "e1", offset: ++n, data: n });
      await pass(1000);
    }
  };
  await busy(35);
  expect(network.sockets).toHaveLength(1);
  await busy(40);
  expect(network.sockets.length).toBeGreaterThan(1);
});

test("a server that refuses heartbeats lives", async () => {
  const { network, model } = start();
  const obey = model.obey.bind(model);
  model.obey = (peer, request) => {
    if (request["type"] !== "heartbeat") return obey(peer, request);
    peer.say({ type: "error", error: "what is that?", id: request["id"] });
  };
  await pass(120_000);
  expect(network.sockets).toHaveLength(1);
});

test("after sleep a dead socket is found within two seconds of waking", async () => {
  const { client, network } = start();
  await pass(3000);
  network.last.silent = true;
  sleep(3_600_000);
  const woke = Date.now();
  while (network.sockets.length === 1) await pass(10);
  expect(Date.now() - woke).toBeLessThanOrEqual(2000);
  await pass(200);
  expect(client.state).toBe("open");
});

test("after sleep a living socket stays", async () => {
  const { client, network } = start();
  await pass(3000);
  sleep(3_600_000);
  await pass(60_000);
  expect(network.sockets).toHaveLength(1);
  expect(client.state).toBe("open");
});

test("a deadline that fires late asks again before it gives up", async () => {
  const { network } = start();
  await pass(100);
  const before = beats(network.last.requests);
  // To the moment at which a heartbeat is on its way.
  while (beats(network.last.requests) === before) await pass(1);
  sleep(60_000);
  await pass(60_000);
  expect(network.sockets).toHaveLength(1);
});

test("an answer that waits unread behind a late deadline counts", async () => {
  const { network, model } = start();
  await pass(100);
  const obey = model.obey.bind(model);
  model.obey = () => {};
  while (beats(network.last.requests) === 0) await pass(1);
  model.obey = obey;
  // The deadline is the next to fire.
  await pass(5000 - 2 * 20);
  sleep(60_000);
  await pass(60_000);
  expect(network.sockets).toHaveLength(1);
});

test("what arrives after waking from before does not count as an answer", async () => {
  const { network, client } = start();
  client.subscribe("chat", () => {});
  await pass(3000);
  const socket = network.last;
  socket.silent = true;
  sleep(60_000);
  await pass(500);
  for (let n = 1; n < 10; n++) {
    const data = JSON.stringify({ type: "message", topic: "chat", epoch: "e1", offset: n, data: n });
    socket.onmessage?.({ data } as never);
    await pass(100);
  }
  await pass(600);
  expect(network.sockets).toHaveLength(2);
});

test("an attempt that never ends is given up", async () => {
  const network = new Network();
  network.mode = "silent";
  const { client } = start(network);
  await pass(9999);
  expect(network.sockets).toHaveLength(1);
  network.mode = "up";
  await pass(500);
  expect(network.sockets).toHaveLength(2);
  expect(client.state).toBe("open");
});
