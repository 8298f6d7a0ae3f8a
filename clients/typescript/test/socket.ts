// Sockets of a network that exists in memory, on the tests' own clock.
import type { Socket } from "../src/index.js";
import { Model, type Answering, type Peer } from "./model.js";

/** How long a message takes, and a refusal. */
export const DELAY = 20;

export class Network {
  readonly sockets: FakeSocket[] = [];
  /** What attempts meet: a server, nothing that answers, or a refusal. */
  mode: "up" | "silent" | "refuse" = "up";

  constructor(readonly model = new Model()) {}

  /** The constructor that clients get. */
  get WebSocket() {
    const network = this;
    return class extends FakeSocket {
      constructor(url: string, protocols: string[] = []) {
        super(url, protocols, network);
      }
    };
  }

  get last(): FakeSocket {
    return this.sockets.at(-1)!;
  }
}

/** A WebSocket to the model, on a way that can fail in the usual manners. */
export class FakeSocket implements Socket {
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  readonly began = Date.now();
  peer: Peer | undefined;
  /** Nothing gets through any more, and neither side is told. */
  silent = false;
  closed = false;
  #open = false;

  constructor(
    readonly url: string,
    readonly protocols: string[],
    readonly network: Network,
  ) {
    network.sockets.push(this);
    if (network.mode === "silent") this.silent = true;
    setTimeout(() => this.#arrive(), DELAY);
  }

  /** The resume token that the upgrade request had, and where. */
  get token(): { text: string; in: "protocols" | "query" } | undefined {
    const query = new URL(this.url).searchParams.get("resume");
    if (query) return { text: query, in: "query" };
    const [, text] = /^ws-guard\.resume\.(.*)$/m.exec(this.protocols.join("\n")) ?? [];
    return text ? { text, in: "protocols" } : undefined;
  }

  get requests(): Answering[] {
    return this.peer?.requests ?? [];
  }

  send(text: string): void {
    if (!this.#open) throw new Error("InvalidStateError");
    this.#later(() => this.peer?.receive(text));
  }

  close(): void {
    this.closed = true;
    if (this.peer) this.network.model.gone(this.peer);
  }

  /** The connection ends here and there; what was on its way is lost. */
  cut(code = 1006, reason = ""): void {
    this.silent = true;
    this.close();
    this.onclose?.({ code, reason } as never);
  }

  #arrive(): void {
    if (this.closed || this.silent) return;
    if (this.network.mode === "refuse") return this.cut();
    const open = () => {
      this.#open = true;
      this.onopen?.({} as never);
    };
    this.#later(open);
    const tell = (data: string) => this.#later(() => this.onmessage?.({ data } as never));
    const hangUp = (code: number, reason: string) => this.#later(() => this.cut(code, reason));
    this.peer = this.network.model.connect(this.token?.text, tell, hangUp);
  }

  #later(run: () => void): void {
    setTimeout(() => {
      if (!this.silent) run();
    }, DELAY);
  }
}
