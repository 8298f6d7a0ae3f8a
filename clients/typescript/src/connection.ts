import { parse, type Beat, type Request, type Said } from "./protocol.js";
import { retryAfter } from "./backoff.js";
import { after } from "./timers.js";

/** What is used of a `WebSocket`, the browser's or npm's `ws`. */
export interface Socket {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(text: string): void;
  close(): void;
  /** Of npm's `ws`. */
  terminate?(): void;
  /** Of npm's `ws`, which tells why an upgrade was refused. */
  on?(event: "unexpected-response", heard: (request: Upgrade, response: Refusal) => void): unknown;
}

interface Upgrade {
  destroy(): void;
}

interface Refusal {
  statusCode?: number;
  headers: Record<string, string | string[] | undefined>;
}

/** Times in milliseconds. */
export interface Timing {
  /** For an attempt to connect. */
  connect: number;
  /** Between heartbeats. */
  heartbeat: number;
  /** For the answer to a heartbeat, while nothing else arrives. */
  answer: number;
  /** For the answer to the first heartbeat after waking. */
  wake: number;
}

/** Why a connection ended. */
export interface End {
  code: number;
  reason: string;
  /** HTTP status of a refused upgrade, where the constructor tells it. */
  status?: number | undefined;
  /** The time to wait that a refused upgrade named, in milliseconds. */
  retryAfter?: number | undefined;
  /** `closed` by the other side or on the way; no `answer` in time. */
  cause: "closed" | "answer";
}

/** What a connection tells. */
export interface Listener {
  opened(): void;
  said(message: Said): void;
  /** A heartbeat was answered. */
  beaten(beat: Beat): void;
  /** Whether a new resume token is wanted with the next heartbeat. */
  wantsToken(): boolean;
  ended(end: End): void;
}

/** An attempt that takes longer is given up on waking. */
const FRESH = 1000;
/** A timer that is later than this has slept, and says nothing about the other side. */
const LATE = 1000;
/** A heartbeat is answered ahead of messages that wait; those on the way may take this many times. */
const EXTENSIONS = 6;

/** One WebSocket: its requests' ids, its heartbeat, and its end, which is told once. */
export class Connection {
  readonly #socket: Socket;
  readonly #began = Date.now();
  #open = false;
  #ended = false;
  #lastId = 0;
  #heard = 0;
  /** The heartbeat that is not answered yet. */
  #beat: { id: number; sent: number; patience: number; strict: boolean } | undefined;
  #cancel: () => void;

  constructor(
    socket: Socket,
    readonly listener: Listener,
    readonly timing: Timing,
  ) {
    this.#socket = socket;
    this.#cancel = after(timing.connect, () => this.#lose("no connection"));
    let status: number | undefined;
    let wait: number | undefined;
    socket.onopen = () => {
      this.#open = true;
      this.#heard = Date.now();
      // Clients that connect together do not beat together.
      this.#rest(0.5 + Math.random() / 2);
      listener.opened();
    };
    socket.onmessage = ({ data }: { data: unknown }) => this.#receive(data);
    socket.onclose = ({ code, reason }: { code: number; reason: string }) =>
      this.#end({ code, reason, status, retryAfter: wait, cause: "closed" });
    // An event `close` follows.
    socket.onerror = () => {};
    socket.on?.("unexpected-response", (request, { statusCode, headers }) => {
      status = statusCode;
      wait = retryAfter(String(headers["retry-after"] ?? ""));
      request.destroy();
      this.#end({ code: 1006, reason: `HTTP ${status}`, status, retryAfter: wait, cause: "closed" });
    });
  }

  /** Send a request; returns its id. */
  send(request: Request): number {
    const id = ++this.#lastId;
    // A socket that is closing drops it, and says so soon.
    if (this.#open) this.#socket.send(JSON.stringify({ ...request, id }));
    return id;
  }

  /** Find out soon whether the connection still is one. */
  wake(): void {
    if (this.#open) {
      if (!this.#beat?.strict) this.#probe(this.timing.wake, true);
    } else if (Date.now() - this.#began > FRESH) {
      this.#lose("no connection");
    }
  }

  /** Send a heartbeat now, unless one is on its way. */
  beat(): void {
    if (this.#open && !this.#beat) this.#probe(this.timing.answer, false);
  }

  /** End without telling. */
  close(): void {
    this.#abandon(false);
  }

  #receive(data: unknown): void {
    const message = parse(data);
    this.#heard = Date.now();
    if (message?.id !== undefined && message.id === this.#beat?.id) {
      this.#beat = undefined;
      this.#rest(0.9 + Math.random() / 5);
      // What does not know heartbeats refuses them, and lives.
      return this.listener.beaten(message.type === "heartbeat" ? message : { type: "heartbeat" });
    }
    if (message) this.listener.said(message);
  }

  /** Beat after about the usual time. */
  #rest(part: number): void {
    this.#cancel();
    this.#cancel = after(this.timing.heartbeat * part, () => this.beat());
  }

  #probe(patience: number, strict: boolean): void {
    const resume = this.listener.wantsToken();
    const id = this.send({ type: "heartbeat", ...(resume && { resume }) });
    this.#beat = { id, sent: Date.now(), patience, strict };
    this.#await(patience);
  }

  #await(ms: number): void {
    const due = Date.now() + ms;
    this.#cancel();
    this.#cancel = after(ms, () => this.#overdue(due));
  }

  #overdue(due: number): void {
    const { sent, patience, strict } = this.#beat!;
    const now = Date.now();
    // The answer may be here and unread.
    if (now - due > LATE) return this.#probe(this.timing.wake, true);
    const extended = this.#heard + patience;
    if (!strict && extended > now && now - sent < patience * EXTENSIONS) {
      return this.#await(extended - now);
    }
    this.#lose("no answer");
  }

  /** It only looks open, or never will be. */
  #lose(reason: string): void {
    this.#end({ code: 1006, reason, cause: "answer" });
  }

  #end(end: End): void {
    if (this.#ended) return;
    this.#abandon(end.cause === "answer");
    this.listener.ended(end);
  }

  #abandon(dead: boolean): void {
    this.#ended = true;
    this.#open = false;
    this.#cancel();
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (dead && socket.terminate) socket.terminate();
    else socket.close();
  }
}
