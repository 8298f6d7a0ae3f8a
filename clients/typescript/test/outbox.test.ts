import { expect, test } from "vitest";
import { RequestError } from "../src/index.js";
import { Network } from "./socket.js";
import { pass, start, useClock } from "./stage.js";

useClock();

const published = (network: Network) =>
  network.sockets.map(({ requests }) => requests.filter(({ type }) => type === "publish"));

test("what is published before the connection is there is sent with it, in order", async () => {
  const { client, model } = start();
  const all = [1, 2, 3].map((n) => client.publish("chat", n));
  expect(client.pending).toBe(3);
  await pass(200);
  expect((await Promise.all(all)).map(({ position }) => position?.offset)).toEqual([1, 2, 3]);
  expect(model.topic("chat").history.map(({ data }) => data)).toEqual([1, 2, 3]);
  expect(client.pending).toBe(0);
});

test("what was not answered is sent again under the same key, and stored once", async () => {
  const { client, network, model } = start();
  await pass(100);
  const answer = client.publish("chat", "hello");
  await pass(25);
  expect(model.topic("chat").history).toHaveLength(1);
  network.last.cut();
  await pass(1000);
  expect(await answer).toMatchObject({ repeated: true, position: { offset: 1 } });
  const [[before], [again]] = published(network) as [[{ key: string }], [{ key: string }]];
  expect(before.key).toMatch(/^\d+(-\d+){3}$/);
  expect(again.key).toBe(before.key);
  expect(model.topic("chat").history).toHaveLength(1);
});

test("the caller may name the key", async () => {
  const { client, network } = start();
  void client.publish("chat", 1, "order-17");
  await pass(200);
  expect(published(network)[0]).toMatchObject([{ key: "order-17" }]);
});

test("what is published is what it was at the call", async () => {
  const { client, model } = start();
  const data = { n: 1 };
  void client.publish("chat", data);
  data.n = 2;
  await pass(200);
  expect(model.topic("chat").history).toMatchObject([{ data: { n: 1 } }]);
});

test("the queue is bounded, in messages and in size, and says so", async () => {
  const { client } = start(new Network(), { outbox: { messages: 3, bytes: 100 } });
  const first = client.publish("chat", "x".repeat(80));
  const large = client.publish("chat", "x".repeat(80)).catch((error: unknown) => error);
  const small = [client.publish("chat", 1), client.publish("chat", 2)];
  const many = client.publish("chat", 3).catch((error: unknown) => error);
  expect(await large).toMatchObject({ status: 429 });
  expect(await many).toBeInstanceOf(RequestError);
  await pass(200);
  await Promise.all([first, ...small]);
  await pass(0);
  const later = client.publish("chat", "x".repeat(80));
  await pass(200);
  await later;
});

test.each([null, undefined])("%s is nothing to publish", async (data) => {
  await expect(start().client.publish("chat", data)).rejects.toMatchObject({ status: 400 });
});

test("no more is on the way than allowed", async () => {
  const { client, network } = start(new Network(), { outbox: { inFlight: 2 } });
  for (let n = 0; n < 6; n++) void client.publish("chat", n);
  await pass(2 * 20 + 20);
  expect(published(network)[0]).toHaveLength(2);
  await pass(40);
  expect(published(network)[0]).toHaveLength(4);
  await pass(500);
  expect(client.pending).toBe(0);
});

test("a refusal for good is told, with the remedy, and the rest goes on", async () => {
  const { client, model } = start();
  model.refusals = [{ status: 403, error: "not yours", remedy: "ask" }];
  const refused = client.publish("chat", 1).catch((error: unknown) => error);
  const fine = client.publish("chat", 2);
  await pass(200);
  expect(await refused).toMatchObject({ message: "not yours", status: 403, remedy: "ask" });
  expect(await fine).toMatchObject({ position: { offset: 1 } });
});

test.each([429, 503])("%i is tried again after the time that the server names", async (status) => {
  const { client, network } = start();
  await pass(100);
  network.model.refusals = [{ status, retry_after_ms: 3000 }];
  const answer = client.publish("chat", 1, "key");
  await pass(3030);
  expect(published(network)[0]).toHaveLength(1);
  await pass(100);
  expect(published(network)[0]).toMatchObject([{ key: "key" }, { key: "key" }]);
  expect(await answer).toMatchObject({ position: { offset: 1 } });
});

test("429 without a time is for good", async () => {
  const { client, model } = start();
  model.refusals = [{ status: 429, error: "this connection has 64 topics" }];
  await Promise.all([expect(client.publish("chat", 1)).rejects.toMatchObject({ status: 429 }), pass(200)]);
});

test("with one on the way at a time, a pause does not change the order", async () => {
  const { client, model } = start(new Network(), { outbox: { inFlight: 1 } });
  model.refusals = [{ status: 503, retry_after_ms: 500 }];
  for (let n = 0; n < 5; n++) void client.publish("chat", n);
  await pass(3000);
  expect(model.topic("chat").history.map(({ data }) => data)).toEqual([0, 1, 2, 3, 4]);
});

test("a message that is too large for the server does not come back for ever", async () => {
  const { client, network, model } = start();
  const large = client.publish("chat", "x".repeat(9000)).catch((error: unknown) => error);
  const small = client.publish("chat", "y");
  const obey = model.obey.bind(model);
  model.obey = (peer, request) => {
    if (JSON.stringify(request).length > 5000) peer.hangUp(1009, "too large");
    else obey(peer, request);
  };
  await pass(2000);
  expect(await large).toMatchObject({ status: 413 });
  expect(await small).toMatchObject({ position: {} });
  expect(network.sockets).toHaveLength(2);
});

test("close gives up what waits, and tells", async () => {
  const { client } = start();
  const waiting = client.publish("chat", 1).catch((error: unknown) => error);
  client.close();
  expect(await waiting).toMatchObject({ message: "the client is closed" });
  expect(client.pending).toBe(0);
});
