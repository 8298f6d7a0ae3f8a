// The bundle in a browser, behind a NAT, against the real server.
import type { ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Browser, hasChromium } from "./chromium.js";
import { Route, Server, endAll, hasServer, start, until } from "./processes.js";

const isRoot = process.getuid?.() === 0;
const script = (name: string) => fileURLToPath(new URL(name, import.meta.url));

/** What the page was told. */
interface Told {
  data: { data: number; at: number }[];
  gaps: unknown[];
  states: { state: string; at: number; reason?: string }[];
  events: [string, number][];
  /** Of each connection, the query of its URL and its subprotocol. */
  agreed: [string, string][];
}

describe.skipIf(!hasServer || !isRoot || !hasChromium())("in Chromium, behind a NAT", () => {
  let route: Route;
  let server: Server;
  let publisher: ChildProcess;
  let browser: Browser;
  let origin: string;
  let published = 0;
  const lines: { port?: number; published?: number }[] = [];

  beforeAll(async () => {
    route = new Route();
    server = await new Server(route.server, Route.SERVER).start();
    const run = (namespace: string, name: string) => {
      const command = [process.execPath, script(name), server.url];
      const child = start(namespace, command, ["pipe", "pipe", "inherit"]);
      child.stdout!.setEncoding("utf8").on("data", (text: string) => {
        for (const line of text.trim().split("\n")) lines.push(JSON.parse(line) as (typeof lines)[0]);
      });
      return child;
    };
    run(route.browser, "page.mjs");
    await until("the page is there", () => lines[0]?.port);
    origin = `http://127.0.0.1:${lines[0]!.port}/`;
    publisher = run(route.server, "publisher.mjs");
    browser = await Browser.at(route.browser, "about:blank");
  });
  afterAll(endAll);

  const told = () => browser.value<Told>("window.told");
  const state = () => browser.value<string>("window.client?.state");

  /** Publish next to the server. */
  async function publish(count = 1): Promise<void> {
    for (let n = 0; n < count; n++) {
      publisher.stdin!.write(`${JSON.stringify({ data: published })}\n`);
      published++;
    }
    await until("it is published", () => lines.at(-1)?.published === published - 1);
  }

  /** A fresh page that follows the topic, and has the first message and a token. */
  async function open(timing: object = {}): Promise<number> {
    await browser.open(`${origin}#${encodeURIComponent(JSON.stringify(timing))}`);
    await until("the page is connected", async () => (await state()) === "open");
    await browser.value("client.subscribe('chat', () => {}).ready.then(() => {})");
    const first = published;
    await publish();
    await until("the first message is there", async () => (await told()).data.length === 1);
    return first;
  }

  /** All since `first` arrives, in order and once; how long after `since` the session was back. */
  async function expectAll(first: number, since: number, what: string): Promise<void> {
    try {
      await until("all is there", async () => (await told()).data.length >= published - first, 30);
    } catch (error) {
      throw new Error(JSON.stringify(await told()), { cause: error });
    }
    const { data, gaps, states } = await told();
    expect(data.map(({ data }) => data)).toEqual(Array.from({ length: published - first }, (_, n) => first + n));
    expect(gaps).toEqual([]);
    const opened = states.filter(({ state }) => state === "open").at(-1)!.at;
    const lost = states.filter(({ reason }) => reason !== undefined).at(-1);
    const found = lost ? `, found dead after ${lost.at - since} ms (${lost.reason || "closed"})` : "";
    console.log(`${what}: session back after ${opened - since} ms${found}`);
  }

  test("a NAT that drops the mapping silently", async () => {
    const first = await open({ heartbeat: 2000, answer: 1000 });
    route.loseMappings();
    const since = Date.now();
    await publish(3);
    await expectAll(first, since, "mapping dropped, heartbeat 2 s, answer 1 s");
    // At the first attempt, with the token where access logs do not have it.
    const { states, agreed } = await told();
    expect(states.filter(({ state }) => state === "waiting")).toHaveLength(1);
    expect(agreed).toEqual([["", ""], ["", "ws-guard.resume"]]);
  });

  test("a cable that is pulled and put back", async () => {
    const first = await open();
    route.cable("down");
    await publish(3);
    await until("the page notices", async () => (await state()) !== "open");
    route.cable("up");
    await expectAll(first, Date.now(), "offline and online");
    expect((await told()).events.map(([name]) => name)).toContain("online");
  });

  test("a frozen page", async () => {
    const first = await open();
    await browser.ask("Page.setWebLifecycleState", { state: "frozen" });
    route.loseMappings();
    await publish(3);
    const since = Date.now();
    await browser.ask("Page.setWebLifecycleState", { state: "active" });
    await expectAll(first, since, "frozen page, mapping dropped");
  });

  test("a laptop that sleeps", async () => {
    const first = await open();
    browser.signal("SIGSTOP");
    route.loseMappings();
    await publish(3);
    // Longer than what a busy machine might cost.
    await new Promise((resolve) => setTimeout(resolve, 2500));
    const since = Date.now();
    browser.signal("SIGCONT");
    await expectAll(first, since, "sleep, mapping dropped");
  });

  test("a laptop that sleeps and whose connection survives keeps it", async () => {
    const first = await open();
    browser.signal("SIGSTOP");
    await publish(3);
    await new Promise((resolve) => setTimeout(resolve, 2500));
    browser.signal("SIGCONT");
    await expectAll(first, Date.now(), "sleep, connection alive");
    await new Promise((resolve) => setTimeout(resolve, 2500));
    expect((await told()).states.filter(({ state }) => state === "open")).toHaveLength(1);
  });

  test("a hidden tab", async () => {
    const first = await open({ heartbeat: 1000, answer: 700 });
    const uncover = await browser.cover();
    await until("it is hidden", () => browser.value<boolean>("document.hidden"));
    route.loseMappings();
    const since = Date.now();
    await publish(3);
    // It finds out and comes back while it is hidden.
    await expectAll(first, since, "hidden tab, mapping dropped");
    expect(await browser.value<boolean>("document.hidden")).toBe(true);
    route.loseMappings();
    await publish(3);
    const shown = Date.now();
    await uncover();
    await expectAll(first, shown, "tab shown again, mapping dropped");
  });

  test("a page that is left, and restored from the back/forward cache", async () => {
    const first = await open();
    await browser.value(`location.href = ${JSON.stringify(`${origin}other`)}`);
    await until("it is left", () => browser.value<boolean>("location.pathname === '/other'"));
    await publish(3);
    const since = Date.now();
    await browser.value("history.back()");
    await until("it is back", () => browser.value<boolean>("location.pathname === '/'"));
    await expectAll(first, since, "restored page");
    expect((await told()).events.map(([name]) => name)).toContain("restored");
  });

  test("timers go on in a worker", async () => {
    await open({ heartbeat: 300 });
    const beats = await browser.value<number>(`new Promise((resolve) => {
      let beats = 0;
      const { send } = WebSocket.prototype;
      WebSocket.prototype.send = function (text) { beats++; return send.call(this, text); };
      // The page's own timers never fire again.
      window.setTimeout = () => 0;
      const worker = new Worker(URL.createObjectURL(new Blob(["setTimeout(postMessage, 3000, 1)"])));
      worker.onmessage = () => resolve(beats);
    })`);
    expect(beats).toBeGreaterThan(2);
  });

  test("a server that is killed and comes back", async () => {
    await open();
    await server.end();
    await until("the page notices", async () => (await state()) !== "open");
    await server.start();
    const since = Date.now();
    await until("the page is back", async () => (await told()).gaps.length > 0);
    await publish(2);
    await until("all is there", async () => (await told()).data.at(-1)?.data === published - 1);
    const { data, gaps, states } = await told();
    expect(data.slice(1).map(({ data }) => data)).toEqual([published - 2, published - 1]);
    expect(gaps).toHaveLength(1);
    console.log(`server killed: session back ${states.at(-1)!.at - since} ms after it listens again`);
  });
});
