// Programs that tests start, each ended by its own id, and the network that they live in.
import { execFileSync, spawn, type ChildProcess, type StdioOptions } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../../../", import.meta.url));

/** The server's program: `WS_GUARD_BINARY`, or what `cargo build` makes. */
export const BINARY = process.env["WS_GUARD_BINARY"] ?? join(ROOT, "target/debug/ws-guard");
export const hasServer = existsSync(BINARY);

const endings: (() => unknown)[] = [];

/** Do something at the end of the test file, the latest first. */
export function atEnd(end: () => unknown): void {
  endings.push(end);
}

export async function endAll(): Promise<void> {
  for (const end of endings.splice(0).reverse()) {
    try {
      await end();
    } catch (error) {
      console.error(error);
    }
  }
}

/** Wait for something that a test expects; it fails after a while, whatever the machine does. */
export async function until(what: string, holds: () => unknown, seconds = 40): Promise<void> {
  const deadline = Date.now() + seconds * 1000;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`${what}: not in ${seconds} s`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** A program in a namespace, or here. */
export function start(namespace: string | undefined, command: string[], stdio: StdioOptions): ChildProcess {
  const [program, ...words] = namespace ? ["ip", "netns", "exec", namespace, ...command] : command;
  const child = spawn(program!, words, { stdio, detached: true });
  atEnd(() => kill(child, "SIGKILL"));
  return child;
}

/** Signal a program and all that it has started. */
export function kill(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.exitCode === null && child.signalCode === null) process.kill(-child.pid!, signal);
}

/** `ws-guard serve`, whose topics `chat…` have a history. */
export class Server {
  #child: ChildProcess | undefined;
  readonly #folder = mkdtempSync(join(tmpdir(), "wsg-client-"));
  port = 0;

  /** `more` are further flags. */
  constructor(
    readonly namespace?: string,
    readonly address = "127.0.0.1",
    readonly more: string[] = [],
  ) {
    atEnd(() => rmSync(this.#folder, { recursive: true }));
    const topics = '[[server.topic]]\nmatch = "chat*"\nhistory = 1000\nttl = "5m"\n';
    writeFileSync(join(this.#folder, "topics.toml"), topics);
    writeFileSync(join(this.#folder, "secret"), "x".repeat(32));
  }

  get url(): string {
    return `ws://${this.address}:${this.port}/`;
  }

  /** Serve, again at the same port. */
  async start(): Promise<this> {
    const words = ["serve", "--listen", `${this.address}:${this.port}`, "--handler", "topic"];
    words.push("--config", join(this.#folder, "topics.toml"), "--max-connections-per-source", "5000");
    words.push("--resume-secret", join(this.#folder, "secret"));
    // The machine may be busy with other things.
    words.push("--stall-refuse", "1h", "--stall-shed", "1h", ...this.more);
    this.#child = start(this.namespace, [BINARY, ...words], ["ignore", "ignore", "pipe"]);
    let log = "";
    this.#child.stderr!.on("data", (text) => (log += text));
    const listening = /serving WebSocket connections on \S+:(\d+)/;
    await until("the server listens", () => {
      if (this.#child!.exitCode !== null) throw new Error(`the server ended: ${log}`);
      return listening.test(log);
    });
    this.port = Number(listening.exec(log)![1]);
    return this;
  }

  signal(signal: NodeJS.Signals): void {
    kill(this.#child!, signal);
  }

  /** End at once, and wait for that. */
  async end(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    const child = this.#child!;
    this.signal(signal);
    await until("the server has ended", () => child.exitCode !== null || child.signalCode !== null);
  }
}

/**
 * Redis, in memory only, at a port that was free.
 *
 * Debian has the program in `redis-tools` too, which starts no service: it goes by the name it is called by.
 */
const REDIS = "/usr/bin/redis-check-rdb";

export async function startRedis(): Promise<string> {
  const port = await freePort();
  const words = ["--port", `${port}`, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
  const redis = spawn(REDIS, words, { argv0: "redis-server", stdio: ["ignore", "pipe", "inherit"], detached: true });
  atEnd(() => kill(redis, "SIGKILL"));
  let log = "";
  redis.stdout!.on("data", (text) => (log += text));
  await until("redis is ready", () => log.includes("Ready to accept connections"));
  return `redis://127.0.0.1:${port}`;
}

export const hasRedis = existsSync(REDIS);

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address() as AddressInfo;
      probe.close(() => resolve(port));
    });
  });
}

export function run(...words: string[]): string {
  return execFileSync(words[0]!, words.slice(1), { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

/**
 * Browser, router with NAT, and server, each in a namespace.
 *
 * The browser is 10.213.1.1; the server 10.213.2.2.
 */
export class Route {
  static readonly SERVER = "10.213.2.2";
  #zone = 1;
  readonly #prefix = `wsgc${process.pid}`;
  readonly browser = `${this.#prefix}b`;
  readonly router = `${this.#prefix}r`;
  readonly server = `${this.#prefix}s`;

  constructor() {
    const { browser, router, server } = this;
    for (const name of [browser, router, server]) {
      run("ip", "netns", "add", name);
      atEnd(() => run("ip", "netns", "del", name));
      run("ip", "-n", name, "link", "set", "lo", "up");
    }
    this.#join(browser, "10.213.1.1/24", router, "10.213.1.2/24", "in");
    this.#join(server, "10.213.2.2/24", router, "10.213.2.1/24", "out");
    run("ip", "-n", browser, "route", "add", "default", "via", "10.213.1.2");
    this.inRouter("sysctl", "-qw", "net.ipv4.ip_forward=1");
    this.inRouter("iptables", "-t", "raw", "-A", "PREROUTING", "-j", "CT", "--zone", `${this.#zone}`);
    this.inRouter("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "out", "-j", "MASQUERADE");
    // What belongs to no mapping is dropped, and nobody is told.
    this.inRouter("iptables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP");
    this.inRouter("iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP");
    this.inRouter("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0");
  }

  inRouter(...words: string[]): void {
    run("ip", "netns", "exec", this.router, ...words);
  }

  /** Forget all mappings, as a router does that starts again. Neither side is told. */
  loseMappings(): void {
    // Those of another zone are not found any more.
    this.inRouter("iptables", "-t", "raw", "-R", "PREROUTING", "1", "-j", "CT", "--zone", `${++this.#zone}`);
  }

  /** Pull the browser's cable, or put it back. */
  cable(state: "up" | "down"): void {
    run("ip", "-n", this.browser, "link", "set", "eth0", state);
    if (state === "up") run("ip", "-n", this.browser, "route", "replace", "default", "via", "10.213.1.2");
  }

  #join(end: string, address: string, router: string, gateway: string, name: string): void {
    run("ip", "-n", end, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", router);
    run("ip", "-n", end, "addr", "add", address, "dev", "eth0");
    run("ip", "-n", router, "addr", "add", gateway, "dev", name);
    run("ip", "-n", end, "link", "set", "eth0", "up");
    run("ip", "-n", router, "link", "set", name, "up");
  }
}
