import { expect, test, vi } from "vitest";
import { DELAY, Network } from "./socket.js";
import { pass, start, useClock } from "./stage.js";

useClock();

/** A page, whose events tests fire. */
function page() {
  const [window, document] = [new EventTarget(), new EventTarget()];
  vi.stubGlobal("addEventListener", window.addEventListener.bind(window));
  vi.stubGlobal("removeEventListener", window.removeEventListener.bind(window));
  vi.stubGlobal("document", document);
  Object.assign(document, { visibilityState: "visible" });
  const fire = (name: string) => {
    const target = ["visibilitychange", "resume"].includes(name) ? document : window;
    target.dispatchEvent(new Event(name));
  };
  return { fire, document };
}

const EVENTS = ["online", "offline", "pageshow", "visibilitychange", "resume"];

test.each(EVENTS)("%s finds out that an open socket is dead", async (name) => {
  const { fire } = page();
  const { client, network } = start();
  await pass(3000);
  network.last.silent = true;
  fire(name);
  await pass(1399 + DELAY);
  expect(network.sockets).toHaveLength(1);
  await pass(200);
  expect(network.sockets).toHaveLength(2);
  expect(client.state).toBe("open");
});

test.each(EVENTS)("%s keeps a socket that lives", async (name) => {
  const { fire } = page();
  const { network } = start();
  await pass(3000);
  for (let n = 0; n < 5; n++) fire(name);
  await pass(5000);
  expect(network.sockets).toHaveLength(1);
  expect(network.last.requests.filter(({ type }) => type === "heartbeat")).toHaveLength(1);
});

test("a page that becomes hidden is no waking", async () => {
  const { fire, document } = page();
  const { network } = start();
  await pass(3000);
  Object.assign(document, { visibilityState: "hidden" });
  fire("visibilitychange");
  await pass(1000);
  expect(network.last.requests).toHaveLength(0);
});

test("waking ends a long wait, and starts back-off anew", async () => {
  const { fire } = page();
  const network = new Network();
  network.mode = "refuse";
  const { client, heard } = start(network);
  await pass(60_000);
  expect(client.state).toBe("waiting");
  const delay = heard.states.filter(({ state }) => state === "waiting").at(-1)!.delay!;
  expect(delay).toBeGreaterThan(5000);
  const attempts = network.sockets.length;
  while (client.state !== "waiting") await pass(10);
  await pass(2000);
  fire("online");
  await pass(2 * DELAY);
  expect(network.sockets).toHaveLength(attempts + 1);
  // What comes too early for the network is followed by more, soon.
  expect(heard.states.at(-1)).toMatchObject({ state: "waiting", delay: 75 });
  network.mode = "up";
  await pass(75 + 2 * DELAY);
  expect(client.state).toBe("open");
});

test("waking again and again does not hammer the server", async () => {
  const { fire } = page();
  const network = new Network();
  network.mode = "refuse";
  start(network);
  for (let n = 0; n < 1000; n++) {
    fire("online");
    await pass(10);
  }
  // Ten seconds: at most one attempt each 75 ms and the time until it is refused.
  expect(network.sockets.length).toBeLessThan(10_000 / (75 + DELAY));
});

test("waking does not overrule what the server wants", async () => {
  const { fire } = page();
  const { client, network } = start();
  await pass(6000);
  network.last.cut(1012, "restarting; retry-after-ms=5000");
  await pass(2000);
  fire("online");
  await pass(2900);
  expect(network.sockets).toHaveLength(1);
  await pass(200);
  expect(client.state).toBe("open");
});

test("an attempt that was under way during sleep is made again", async () => {
  const { fire } = page();
  const network = new Network();
  network.mode = "silent";
  const { client } = start(network);
  await pass(3000);
  network.mode = "up";
  fire("online");
  await pass(200);
  expect(network.sockets).toHaveLength(2);
  expect(client.state).toBe("open");
});

test("a closed client listens to nothing", async () => {
  const { fire } = page();
  const { client, network } = start();
  await pass(100);
  client.close();
  for (const name of EVENTS) fire(name);
  await pass(60_000);
  expect(network.sockets).toHaveLength(1);
  expect(vi.getTimerCount()).toBe(0);
});
