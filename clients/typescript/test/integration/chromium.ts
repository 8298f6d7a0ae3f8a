// Chromium without a screen, driven through its debugging pipe: messages of JSON that end with a zero byte.
import type { ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { atEnd, kill, run, start } from "./processes.js";

/** For an answer, on a busy machine. */
const PATIENCE = 15_000;
const PROGRAM = "chromium";

export function hasChromium(): boolean {
  try {
    return run(PROGRAM, "--version") !== "";
  } catch {
    return false;
  }
}

interface Answer {
  id?: number;
  result?: Record<string, never>;
  error?: { message: string };
}

export class Browser {
  readonly #process: ChildProcess;
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  #last = 0;
  #tab: string | undefined;
  #session: string | undefined;

  private constructor(namespace: string | undefined) {
    const profile = mkdtempSync(join(tmpdir(), "wsg-browser-"));
    atEnd(() => rmSync(profile, { recursive: true, force: true }));
    const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
    flags.push("--remote-debugging-pipe", `--user-data-dir=${profile}`);
    const stdio = ["ignore", "ignore", "ignore", "pipe", "pipe"] as const;
    this.#process = start(namespace, [PROGRAM, ...flags], [...stdio]);
    let text = "";
    // Both ends go with the browser.
    this.#process.stdio[3]!.on("error", () => {});
    this.#process.stdio[4]!.on("error", () => {});
    (this.#process.stdio[4] as Readable).setEncoding("utf8").on("data", (more: string) => {
      const messages = (text + more).split("\0");
      text = messages.pop()!;
      for (const message of messages) this.#take(JSON.parse(message) as Answer);
    });
  }

  /** One with a tab that shows a page. */
  static async at(namespace: string | undefined, url: string): Promise<Browser> {
    const browser = new Browser(namespace);
    await browser.open(url);
    return browser;
  }

  /** Show a page in a tab of its own, and close the one before. */
  async open(url: string): Promise<void> {
    const last = this.#tab;
    this.#session = undefined;
    const { targetId } = await this.ask("Target.createTarget", { url });
    if (last) await this.ask("Target.closeTarget", { targetId: last });
    const { sessionId } = await this.ask("Target.attachToTarget", { targetId, flatten: true });
    this.#tab = targetId;
    this.#session = sessionId;
  }

  /** Put a tab before the one that shows the page, so that the page is hidden, or take it away. */
  async cover(): Promise<() => Promise<void>> {
    const session = this.#session;
    this.#session = undefined;
    const { targetId } = await this.ask("Target.createTarget", { url: "about:blank" });
    await this.ask("Target.activateTarget", { targetId });
    this.#session = session;
    return async () => {
      this.#session = undefined;
      await this.ask("Target.activateTarget", { targetId: this.#tab });
      await this.ask("Target.closeTarget", { targetId });
      this.#session = session;
    };
  }

  ask(method: string, params: object = {}): Promise<Record<string, never>> {
    const id = ++this.#last;
    const sessionId = this.#session;
    const text = JSON.stringify({ id, method, params, ...(sessionId && { sessionId }) });
    (this.#process.stdio[3] as Writable).write(`${text}\0`);
    return new Promise((resolve, reject) => {
      const late = () => reject(new Error(`${method}: no answer in ${PATIENCE} ms`));
      const timer = setTimeout(late, PATIENCE);
      this.#waiting.set(id, ({ result, error }) => {
        clearTimeout(timer);
        if (error) reject(new Error(`${method}: ${error.message}`));
        else resolve(result!);
      });
    });
  }

  /** Value of an expression in the page. */
  async value<Value>(expression: string): Promise<Value> {
    const wanted = { expression, returnByValue: true, awaitPromise: true };
    const { result, exceptionDetails } = await this.ask("Runtime.evaluate", wanted);
    if (exceptionDetails) throw new Error(`${expression}: ${JSON.stringify(exceptionDetails)}`);
    return (result as unknown as { value: Value }).value;
  }

  /** Stop the whole browser, or let it go on. */
  signal(signal: "SIGSTOP" | "SIGCONT"): void {
    kill(this.#process, signal);
  }

  #take(answer: Answer): void {
    const { id } = answer;
    if (id === undefined) return;
    this.#waiting.get(id)?.(answer);
    this.#waiting.delete(id);
  }
}
