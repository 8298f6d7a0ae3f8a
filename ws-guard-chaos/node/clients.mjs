// The browser client under Node, in a chaos run: the same arguments, words and log lines as
// `ws-guard-chaos clients`.
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { parseArgs } from "node:util";

const client = new URL("../../clients/typescript/", import.meta.url);
const { Client } = await import(new URL("dist/ws-guard-client.js", client));
const WebSocket = createRequire(new URL("package.json", client))("ws");

const text = { type: "string" };
const { values } = parseArgs({
  options: {
    server: text, from: text, ca: text, topics: text, seed: text, log: text, clients: text, rate: text,
  },
});
const [addresses, ca] = [values.from?.split(","), values.ca && readFileSync(values.ca)];
const [clients, topics] = [Number(values.clients), Number(values.topics)];
/** Milliseconds between two publications of a client. */
const every = (1000 * clients) / Number(values.rate);

const file = openSync(values.log, "w");
let lines = [];
/** Microseconds since 1970. */
const now = () => Math.round((performance.timeOrigin + performance.now()) * 1000);

function flush() {
  const text = lines.join("");
  lines = [];
  // Written whole, or the run proves nothing.
  for (let left = Buffer.from(text); left.length > 0; ) left = left.subarray(writeSync(file, left));
}

function log(who, event) {
  lines.push(JSON.stringify({ at: now(), who, ...event }) + "\n");
  if (lines.length >= 1000) flush();
}

let [following, waiting, publishing, heard] = [0, 0, false, 0];
const topicOf = (number) => `chaos:${number % topics}`;

function start(number) {
  const [who, topic] = [`browser-${number}`, topicOf(number)];
  let [open, began, published] = [false, false, 0];
  log(who, { event: "began", topic });

  /** The session is back once the server says that the topic goes on, which the client does not tell. */
  function saw(data) {
    if (open) return;
    const said = JSON.parse(data);
    if (said.type !== "subscribed" || said.topic !== topic) return;
    if (said.recovered === false && said.id === undefined) return;
    if (!began) log(who, { event: "subscribed", topic, offset: said.offset });
    [open, began] = [true, true];
    following++;
    log(who, { event: "open", recovered: said.recovered !== false });
  }

  class Socket extends WebSocket {
    constructor(url, protocols) {
      super(url, protocols, { ca, servername: "localhost", localAddress: addresses?.[number % addresses.length] });
      this.on("message", (data) => saw(String(data)));
    }
  }

  const scheme = ca ? "wss" : "ws";
  const it = new Client(`${scheme}://${values.server}/`, {
    WebSocket: Socket,
    timing: { heartbeat: 4000 },
    // As the clients in Rust.
    backoff: { first: 100 },
  });
  it.on("state", ({ state, end, delay }) => {
    if (state !== "waiting") return;
    const why = `${end.code} ${end.reason}`;
    if (open) following--;
    log(who, { event: open ? "closed" : "failed", why });
    // A time that the server named is kept to the millisecond.
    const asked = /retry-after-ms=\d+/.test(end.reason) || end.retryAfter !== undefined;
    if (asked) log(who, { event: "wait", ms: Math.round(delay) });
    open = false;
  });
  it.on("gap", ({ topic, from, to }) => {
    log(who, { event: "gap", topic, from: from?.offset ?? 0, to: to?.offset ?? 0 });
  });
  it.subscribe(topic, ({ data, position }) => {
    heard = Date.now();
    log(who, { event: "message", topic, offset: position.offset, id: data });
  });

  async function publish() {
    setTimeout(publish, every * (0.5 + Math.random()));
    if (!publishing || !open) return;
    const [to, id] = [topicOf(Math.floor(Math.random() * topics)), `${who}-${published++}`];
    waiting++;
    log(who, { event: "publish", topic: to, id });
    try {
      const { position, repeated } = await it.publish(to, id, id);
      log(who, { event: "published", topic: to, id, offset: position.offset, repeated: repeated === true });
    } catch (error) {
      log(who, { event: "refused", id, status: error.status ?? 0, again: false });
    }
    waiting--;
  }
  setTimeout(publish, every * Math.random());
}

for (let number = 0; number < clients; number++) {
  start(number);
  await new Promise((resolve) => setTimeout(resolve, 20));
}
const ready = setInterval(() => {
  if (following < clients) return;
  clearInterval(ready);
  publishing = true;
  console.log("ready");
}, 50);

process.on("SIGUSR2", () => {
  publishing = false;
  heard = Date.now();
  const quiet = setInterval(() => {
    if (following < clients || waiting > 0 || Date.now() - heard < 3000) return;
    clearInterval(quiet);
    console.log("quiet");
  }, 200);
});
process.on("SIGTERM", () => {
  log("browsers", { event: "done" });
  flush();
  closeSync(file);
  process.exit(0);
});
