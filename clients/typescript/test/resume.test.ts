import { expect, test } from "vitest";
import { DELAY, Network } from "./socket.js";
import { pass, sleep, start, useClock } from "./stage.js";

useClock();

const asked = (network: Network, type = "subscribe") =>
  network.last.requests.filter((request) => request["type"] === type);

/** A client that has subscribed to a topic, has a token, and has seen `1`. */
async function settled(options = {}, model?: Network["model"]) {
  const stage = start(new Network(model), options);
  const subscription = stage.client.subscribe("chat", () => {});
  await pass(200);
  stage.model.publish("chat", 1);
  await pass(100);
  expect(stage.heard.messages).toEqual([1]);
  return { ...stage, subscription };
}

test("a subscription is confirmed, and its handler gets what is published", async () => {
  const { client, model } = start();
  const seen: unknown[] = [];
  const { ready, unsubscribe } = client.subscribe("chat", ({ data, position }) => seen.push([data, position]));
  await pass(100);
  await ready;
  model.publish("chat", { n: 1 });
  model.publish("other", 2);
  await pass(100);
  expect(seen).toEqual([[{ n: 1 }, { epoch: "e1", offset: 1 }]]);
  unsubscribe();
  model.publish("chat", 3);
  await pass(100);
  expect(seen).toHaveLength(1);
});

test("two handlers share a subscription, until both have left", async () => {
  const { client, network, model } = start();
  const [a, b]: unknown[][] = [[], []];
  const first = client.subscribe("chat", ({ data }) => a!.push(data));
  const second = client.subscribe("chat", ({ data }) => b!.push(data));
  await pass(100);
  expect(asked(network)).toHaveLength(1);
  first.unsubscribe();
  first.unsubscribe();
  model.publish("chat", 1);
  await pass(100);
  expect([a, b]).toEqual([[], [1]]);
  second.unsubscribe();
  await pass(100);
  expect(asked(network, "unsubscribe")).toHaveLength(1);
});

test("a token resumes in the upgrade request, without another round trip", async () => {
  const { network, model, heard } = await settled();
  network.last.cut();
  model.publish("chat", 2);
  await pass(75 + 2 * DELAY);
  expect(network.last.token).toBeTruthy();
  // Nothing was asked for, and what was missed is here.
  expect(heard.messages).toEqual([1, 2]);
  expect(asked(network)).toHaveLength(0);
  // The token is still good. In a storm, all clients would ask for another at the worst time.
  await pass(1000);
  expect(asked(network, "heartbeat")).toHaveLength(0);
  await pass(20_000);
  expect(asked(network, "heartbeat")[0]).toMatchObject({ resume: true });
  expect(heard.gaps).toEqual([]);
});

test("a token is among the subprotocols, which are not in access logs, unless it is wanted in the URL", async () => {
  const before = await settled({ protocols: ["own"] });
  expect(before.network.last.protocols).toEqual(["own"]);
  before.network.last.cut();
  await pass(500);
  const { url, protocols, token } = before.network.last;
  expect(url).toBe("ws://server/ws");
  expect(protocols).toEqual(["own", "ws-guard.resume", `ws-guard.resume.${token!.text}`]);
  const other = await settled({ resume: "query" });
  other.network.last.cut();
  await pass(500);
  expect(other.network.last.token).toMatchObject({ in: "query" });
  expect(other.network.last.protocols).toEqual([]);
});

test("what a token repeats is not delivered again", async () => {
  const { network, model, heard } = await settled();
  for (const n of [2, 3, 4]) model.publish("chat", n);
  await pass(100);
  network.last.cut();
  model.publish("chat", 5);
  await pass(500);
  expect(network.last.peer?.topics.get("chat")?.offset).toBe(5);
  expect(heard.messages).toEqual([1, 2, 3, 4, 5]);
});

test("without tokens, positions do", async () => {
  const { network, model, heard } = start();
  model.obey = new Proxy(model.obey, {
    apply: (obey, self, [peer, { resume, ...request }]) => Reflect.apply(obey, self, [peer, request]),
  });
  const { client } = start(network);
  const own: unknown[] = [];
  client.subscribe("chat", ({ data }) => own.push(data));
  await pass(200);
  model.publish("chat", 1);
  await pass(100);
  network.last.cut();
  model.publish("chat", 2);
  await pass(500);
  expect(network.last.token).toBeUndefined();
  expect(asked(network)).toMatchObject([{ since: { epoch: "e1", offset: 1 } }]);
  expect(own).toEqual([1, 2]);
  expect(heard.gaps).toEqual([]);
});

test("a token that is refused is replaced by subscribing, at once", async () => {
  const { network, model, heard } = await settled();
  model.refusesTokens = true;
  network.last.cut();
  model.publish("chat", 2);
  await pass(75 + 4 * DELAY);
  expect(network.last.token).toBeTruthy();
  expect(heard.messages).toEqual([1, 2]);
  expect(heard.gaps).toEqual([]);
});

test("a token that has expired is not presented", async () => {
  const { network, model, heard } = await settled();
  network.last.silent = true;
  sleep(301_000);
  model.publish("chat", 2);
  await pass(3000);
  expect(network.last.token).toBeUndefined();
  expect(heard.messages).toEqual([1, 2]);
});

test("a token is renewed before it expires, although nothing happens", async () => {
  const { network } = await settled();
  await pass(30 * 60_000);
  network.last.cut();
  await pass(100);
  expect(network.last.token).toBeTruthy();
});

test("a token that would repeat much is not presented", async () => {
  const { network, model, heard } = await settled();
  await pass(25_000);
  for (let n = 0; n < 300; n++) model.publish("chat", n);
  await pass(100);
  network.last.cut();
  model.publish("chat", 300);
  await pass(200);
  expect(network.last.token).toBeUndefined();
  expect(heard.messages).toHaveLength(302);
});

test("a token that was on its way when the connection ended is asked for again", async () => {
  const { network, model } = await settled();
  model.publish("chat", 2);
  const before = asked(network, "heartbeat").length;
  while (asked(network, "heartbeat").length === before) await pass(1);
  network.last.cut();
  await pass(25_000);
  expect(asked(network, "heartbeat")[0]).toMatchObject({ resume: true });
});

test("a subscription that is ended while a token is on its way is not resumed", async () => {
  const { network, model, heard, subscription } = await settled();
  await pass(6000);
  const beats = () => asked(network, "heartbeat").length;
  const before = beats();
  while (beats() === before) await pass(1);
  subscription.unsubscribe();
  await pass(DELAY + 1);
  network.last.cut();
  model.publish("chat", 2);
  await pass(1000);
  expect(network.last.peer?.topics.has("chat")).toBe(false);
  expect(heard.messages).toEqual([1]);
});

test("messages of a subscription that was ended are not of the next one", async () => {
  const { client, model } = await settled();
  const seen: unknown[] = [];
  const second = client.subscribe("news", () => {});
  await pass(200);
  model.publish("news", "before");
  second.unsubscribe();
  client.subscribe("news", ({ data }) => seen.push(data));
  await pass(200);
  model.publish("news", "after");
  await pass(200);
  expect(seen).toEqual(["after"]);
});

test("a server that knows no tokens is asked as usual", async () => {
  const { network, model, heard } = await settled();
  model.tokens = false;
  network.last.cut();
  model.publish("chat", 2);
  await pass(75 + 4 * DELAY);
  // Its first message is no `resumed`.
  network.last.peer!.say({ type: "missed", count: 0 });
  await pass(200);
  expect(heard.messages).toEqual([1, 2]);
});

test("one that says nothing at all is asked after the first heartbeat", async () => {
  const { network, model, heard } = await settled();
  model.tokens = false;
  network.last.cut();
  model.publish("chat", 2);
  await pass(25_000);
  expect(heard.messages).toEqual([1, 2]);
});

test("every second attempt goes without a token, lest something on the way refuse it", async () => {
  const { network } = await settled();
  network.mode = "refuse";
  network.last.cut();
  await pass(3000);
  const tokens = network.sockets.slice(1).map(({ token }) => token !== undefined);
  expect(tokens.slice(0, 4)).toEqual([true, false, true, false]);
});

test("an attempt without a token needs one request a topic, and no new token", async () => {
  const { network, heard, model } = await settled();
  network.mode = "refuse";
  network.last.cut();
  while (network.sockets.length < 3) await pass(1);
  network.mode = "up";
  model.publish("chat", 2);
  await pass(1000);
  expect(network.last.token).toBeUndefined();
  expect(heard.messages).toEqual([1, 2]);
  expect(network.last.requests).toMatchObject([{ type: "subscribe", since: { offset: 1 } }]);
});

test("topics that the token lacks are asked for, those it has in excess are left", async () => {
  const { client, network, model, heard, subscription } = await settled();
  subscription.unsubscribe();
  client.subscribe("news", () => {});
  await pass(2 * DELAY);
  network.last.cut();
  model.publish("chat", "no longer wanted");
  model.publish("news", "n");
  await pass(1000);
  expect(network.last.peer?.topics.has("chat")).toBe(false);
  expect(heard.messages).toEqual([1, "n"]);
});

test("a position that was trimmed is a gap, and is told", async () => {
  const { network, model, heard } = await settled();
  model.kept = 2;
  network.last.cut();
  for (const n of [2, 3, 4, 5]) model.publish("chat", n);
  await pass(500);
  model.publish("chat", 6);
  await pass(100);
  expect(heard.messages).toEqual([1, 6]);
  const [from, to] = [1, 5].map((offset) => ({ epoch: "e1", offset }));
  expect(heard.gaps).toEqual([{ topic: "chat", from, to }]);
});

test("a token whose position was trimmed is no gap while the client's was not", async () => {
  const { network, model, heard } = await settled();
  model.kept = 3;
  for (const n of [2, 3, 4, 5]) {
    model.publish("chat", n);
    await pass(30);
  }
  network.last.cut();
  model.publish("chat", 6);
  await pass(500);
  expect(heard.messages).toEqual([1, 2, 3, 4, 5, 6]);
  expect(heard.gaps).toEqual([]);
});

test("an epoch that changes while offsets go on is no gap", async () => {
  const { network, model, heard } = await settled();
  model.turn("chat");
  model.publish("chat", 2);
  await pass(100);
  network.last.cut();
  model.publish("chat", 3);
  await pass(500);
  expect(heard.messages).toEqual([1, 2, 3]);
  expect(heard.gaps).toEqual([]);
});

test("a history that has lost its end begins anew, and is told", async () => {
  const { model, heard } = await settled();
  model.publish("chat", 2);
  await pass(100);
  model.forget("chat", 1);
  model.publish("chat", "other 2");
  await pass(100);
  expect(heard.messages).toEqual([1, 2, "other 2"]);
  expect(heard.gaps).toMatchObject([{ from: { offset: 2 }, to: { offset: 1, epoch: "e2" } }]);
});

test("one that has lost its end meanwhile also, whatever the token says", async () => {
  const { network, model, heard } = await settled();
  for (const n of [2, 3]) model.publish("chat", n);
  await pass(100);
  network.last.cut();
  model.forget("chat", 2);
  for (const n of [2, 3, 4]) model.publish("chat", `other ${n}`);
  await pass(1000);
  model.publish("chat", "other 5");
  await pass(100);
  expect(heard.gaps).toMatchObject([{ from: { offset: 3 }, to: { epoch: "e2", offset: 1 } }]);
  expect(heard.messages).toEqual([1, 2, 3, "other 2", "other 3", "other 4", "other 5"]);
});

test("what follows a position that the server could not go back to is not lost while it is asked", async () => {
  const { network, model, heard } = await settled();
  network.last.cut();
  model.forget("chat", 1);
  // The resumed topic begins anew at offset 0; this is there before the client's question is.
  await pass(75 + DELAY + 5);
  model.publish("chat", "first");
  model.publish("chat", "second");
  await pass(1000);
  expect(heard.messages).toEqual([1, "first", "second"]);
  expect(heard.gaps).toMatchObject([{ from: { offset: 1 }, to: { offset: 0 } }]);
});

test("after `missed` everything with history is asked for again", async () => {
  const { network, model, heard } = await settled();
  model.overflow(network.last.peer!, "chat", 3);
  await pass(200);
  expect(heard.messages).toHaveLength(4);
  model.publish("chat", "next");
  await pass(200);
  expect(heard.messages).toHaveLength(5);
  expect(heard.messages.at(-1)).toBe("next");
  expect(heard.missed).toEqual([3]);
  expect(heard.gaps).toEqual([]);
});

test("a gap between offsets is asked for, and closed in order", async () => {
  const { network, model, heard } = await settled();
  const { peer } = network.last;
  peer!.topics.delete("chat");
  for (const n of [2, 3]) model.publish("chat", n);
  peer!.topics.set("chat", undefined);
  for (const n of [4, 5]) model.publish("chat", n);
  await pass(200);
  expect(heard.messages).toEqual([1, 2, 3, 4, 5]);
  expect(asked(network)).toHaveLength(2);
});

test("a gap that no question closes is told, not asked about for ever", async () => {
  const { network, heard } = await settled();
  const { peer, network: { model } } = network.last;
  model.obey = (peer, { type, id, topic }) => {
    peer.say({ type: type + "d", id, topic, recovered: true });
  };
  for (let n = 0; n < 20; n++) {
    peer!.say({ type: "message", topic: "chat", epoch: "e1", offset: 10 + n, data: n });
    await pass(100);
  }
  expect(heard.gaps).toHaveLength(1);
  expect(heard.messages.at(-1)).toBe(19);
  expect(asked(network).length).toBeLessThan(6);
});

test("a topic without history has a gap after each reconnection", async () => {
  const { client, network, model, heard } = start();
  client.subscribe("plain", () => {});
  await pass(100);
  model.publish("plain", 1);
  model.publish("plain", 1);
  await pass(100);
  network.last.cut();
  await pass(500);
  expect(heard.messages).toEqual([1, 1]);
  expect(heard.gaps).toEqual([{ topic: "plain", from: undefined, to: undefined }]);
});

test("positions can be kept and given to another client", async () => {
  const { client, model } = await settled();
  const kept = JSON.parse(JSON.stringify(client.positions())) as ReturnType<typeof client.positions>;
  client.close();
  model.publish("chat", 2);
  const next = start(new Network(model));
  next.client.subscribe("chat", () => {}, kept["chat"]);
  await pass(200);
  expect(next.heard.messages).toEqual([2]);
  expect(next.heard.gaps).toEqual([]);
});

test("what the server subscribes by itself is followed and resumed", async () => {
  const stage = start();
  stage.model.auto = ["user:7"];
  await pass(100);
  stage.model.publish("user:7", 1);
  await pass(100);
  stage.network.last.cut();
  stage.model.publish("user:7", 2);
  await pass(1000);
  stage.model.publish("user:7", 3);
  await pass(1000);
  expect(stage.heard.messages).toEqual([1, 2, 3]);
  expect(stage.heard.gaps).toEqual([]);
});

test("a refused subscription is told, and is not asked for again", async () => {
  const { client, network, model, heard } = start();
  model.obey = (peer, { id }) => peer.say({ type: "error", error: "not yours", status: 403, id });
  const { ready } = client.subscribe("secret", () => {});
  await pass(100);
  await expect(ready).rejects.toMatchObject({ status: 403, message: "not yours" });
  expect(heard.errors).toHaveLength(1);
  network.last.cut();
  await pass(1000);
  expect(asked(network)).toHaveLength(0);
});

test("one that cannot be done now is asked for again after the time that the server names", async () => {
  const { client, network, model } = start();
  const obey = model.obey.bind(model);
  model.obey = (peer, { id }) => {
    model.obey = obey;
    peer.say({ type: "error", error: "later", status: 503, retry_after_ms: 2000, id });
  };
  const { ready } = client.subscribe("chat", () => {});
  await pass(2000);
  expect(asked(network)).toHaveLength(1);
  await pass(200);
  await ready;
  expect(asked(network)).toHaveLength(2);
});

test("entries of a queue topic are acknowledged once all that handle them are done", async () => {
  const { client, network } = start();
  let done!: () => void;
  client.subscribe("jobs", () => new Promise<void>((resolve) => (done = resolve)));
  client.subscribe("jobs", () => {});
  await pass(100);
  network.last.peer!.say({ type: "message", topic: "jobs", entry: "17-0", deliveries: 1, data: 1 });
  await pass(100);
  expect(asked(network, "ack")).toHaveLength(0);
  done();
  await pass(100);
  expect(asked(network, "ack")).toMatchObject([{ topic: "jobs", entry: "17-0" }]);
});

test("what took longer than the connection lived is not acknowledged on another", async () => {
  const { client, network } = start();
  let done!: () => void;
  client.subscribe("jobs", () => new Promise<void>((resolve) => (done = resolve)));
  await pass(100);
  network.last.peer!.say({ type: "message", topic: "jobs", entry: "17-0", deliveries: 1, data: 1 });
  await pass(100);
  network.last.cut();
  await pass(1000);
  done();
  await pass(100);
  expect(asked(network, "ack")).toHaveLength(0);
});
