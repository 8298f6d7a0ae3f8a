import { Backoff, hinted, isFinal } from "./backoff.js";
import { Connection, type End, type Listener, type Socket, type Timing } from "./connection.js";
import { Emitter } from "./emitter.js";
import { RequestError, refusal } from "./errors.js";
import { Outbox, type OutboxLimits } from "./outbox.js";
import { positionOf, type Position, type Said } from "./protocol.js";
import { Session, type Gap, type Handler, type Message } from "./session.js";
import { after } from "./timers.js";
import { onWake } from "./wake.js";

/** Where to connect to, or what is asked for that before each attempt. */
export type Url = string | URL | (() => string | URL | Promise<string | URL>);

export interface Options {
  /** Where there is no global `WebSocket`: that of npm's `ws`, for example. */
  WebSocket?: new (url: string, protocols?: string[]) => Socket;
  /** Subprotocols to offer. */
  protocols?: string[];
  /**
   * Where the token goes that resumes the session: with the subprotocols, which access logs do not have, or
   * in the URL, for what is on the way that passes on no subprotocols.
   */
  resume?: "protocol" | "query";
  /** Milliseconds. */
  timing?: Partial<Timing>;
  /** Bounds of the time before the next attempt: of the first, and of all. Milliseconds. */
  backoff?: { first?: number; most?: number };
  outbox?: Partial<OutboxLimits>;
}

export type State =
  /** An attempt is under way. */
  | "connecting"
  | "open"
  /** The next attempt is `delay` milliseconds away, or a waking. */
  | "waiting"
  /** By `close`, or because the server has refused for good. */
  | "closed";

export interface StateChange {
  state: State;
  /** Before the next attempt, in milliseconds. */
  delay?: number;
  /** Why the connection or attempt ended. */
  end?: End | undefined;
}

export interface Events {
  state: StateChange;
  /** Every message of every topic, before the topic's handlers get it. */
  message: Message;
  gap: Gap;
  /** Publications on topics without history were dropped: this client reads too slowly. */
  missed: number;
  /** The server refused a subscription, or something that is no answer to anything. */
  error: RequestError;
}

/** A publication that the server has stored. */
export interface Stored {
  position: Position | undefined;
  /** How many connections receive it, if known. */
  subscribers: number | undefined;
  /** It had been stored already. */
  repeated: boolean | undefined;
}

export interface Subscription {
  readonly topic: string;
  /** Resolved once the server has confirmed it, rejected if it refuses. */
  readonly ready: Promise<void>;
  /** The last message delivered. */
  readonly position: Position | undefined;
  unsubscribe(): void;
}

/** The subprotocol that resumes; with a token behind a dot, that token. */
const RESUME = "ws-guard.resume";
/** A connection that lived for this long makes up for the failures before it. */
const STABLE = 5000;
/** After an attempt this recent, a waking waits too. */
const RECENT = 1000;

/**
 * Client that comes back, with everything it had subscribed to.
 *
 * `Topics` gives the type of the data of each topic.
 */
export class Client<Topics extends object = Record<string, any>> extends Emitter<Events> {
  readonly #url: Url;
  readonly #options: Options;
  readonly #timing: Timing;
  readonly #backoff: Backoff;
  readonly #outbox: Outbox;
  readonly #session: Session;
  #state: State = "closed";
  #connection: Connection | undefined;
  /** Ends the wait for the next attempt. */
  #cancel: (() => void) | undefined;
  #unwake: (() => void) | undefined;
  /** When the last attempt began, and before when the server wants none. */
  #attempted = 0;
  #notBefore = 0;
  #opened = 0;
  /** Attempts since the last connection. */
  #tries = 0;
  /** Counts attempts, so that those given up are ignored. */
  #attempt = 0;

  /** Connect; `url` may be relative to the page, or a function that is asked before each attempt. */
  constructor(url: Url, options: Options = {}) {
    super();
    this.#url = url;
    this.#options = options;
    const { timing, backoff, outbox } = options;
    this.#timing = { connect: 10_000, heartbeat: 20_000, answer: 5000, wake: 1400, ...timing };
    this.#backoff = new Backoff(backoff?.first ?? 150, backoff?.most ?? 30_000);
    this.#outbox = new Outbox({ messages: 1000, bytes: 1 << 20, inFlight: 16, ...outbox });
    this.#session = new Session({
      message: (message) => this.emit("message", message),
      gap: (gap) => this.emit("gap", gap),
      missed: (count) => this.emit("missed", count),
      error: (error) => this.emit("error", error),
    });
    this.connect();
  }

  get state(): State {
    return this.#state;
  }

  /** How many publications wait for the server's answer. */
  get pending(): number {
    return this.#outbox.length;
  }

  /** The last position of each topic with history, to be kept and given to `subscribe` later. */
  positions(): Record<string, Position> {
    return this.#session.positions();
  }

  /** Connect now, after `close` or a final refusal or while the next attempt is waited for. */
  connect(): void {
    if (this.#state === "closed") this.#unwake = onWake(() => this.#wake());
    else if (this.#state !== "waiting") return;
    void this.#try();
  }

  /** Disconnect and stay so; what waits to be published is given up. */
  close(): void {
    this.#stop({});
  }

  /**
   * Follow a topic, from now on or from after `since`.
   *
   * Messages are delivered in order and once. Those of a queue topic are acknowledged once the handler has
   * returned and the promise that it returned is fulfilled.
   */
  subscribe<Topic extends string & keyof Topics>(
    topic: Topic,
    handler: (message: Message<Topics[Topic]>) => unknown,
    since?: Position,
  ): Subscription {
    // One of its own for each call, so that the same function can be given twice.
    const own: Handler = (message) => handler(message);
    const entry = this.#session.subscribe(topic, own, since);
    return {
      topic,
      ready: entry.ready,
      get position() {
        return entry.track.position;
      },
      unsubscribe: () => this.#session.unsubscribe(entry, own),
    };
  }

  /** Publish; fulfilled once the server has stored it, under the same `key` only once. */
  async publish<Topic extends string & keyof Topics>(
    topic: Topic,
    data: Topics[Topic],
    key?: string,
  ): Promise<Stored> {
    const answer = await this.#outbox.publish(topic, data, key);
    const { subscribers, repeated } = answer;
    return { position: positionOf(answer), subscribers, repeated };
  }

  async #try(): Promise<void> {
    this.#cancel?.();
    const attempt = ++this.#attempt;
    this.#attempted = Date.now();
    this.#become({ state: "connecting" });
    try {
      const given = await (typeof this.#url === "function" ? this.#url() : this.#url);
      if (attempt === this.#attempt) this.#open(given);
    } catch (error) {
      const end: End = { code: 1006, reason: String(error), cause: "closed" };
      if (attempt === this.#attempt) this.#ended(end);
    }
  }

  #open(given: string | URL): void {
    const url = new URL(given, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
    // Without it every other time: what is on the way may refuse so long a line.
    const token = this.#tries++ % 2 ? undefined : this.#session.token();
    const { WebSocket = globalThis.WebSocket, resume } = this.#options;
    let { protocols = [] } = this.#options;
    if (token && resume === "query") url.searchParams.set("resume", token);
    // The server answers with the first, unless it takes another that is offered.
    else if (token) protocols = [...protocols, RESUME, `${RESUME}.${token}`];
    const Constructor = WebSocket as new (url: string, protocols?: string[]) => Socket;
    const socket = new Constructor(url.href, protocols);
    const listener: Listener = {
      opened: () => this.#established(token !== undefined),
      said: (message) => this.#said(message),
      beaten: (beat) => this.#session.beaten(beat),
      wantsToken: () => this.#session.wantsToken(),
      ended: (end) => this.#ended(end),
    };
    this.#connection = new Connection(socket, listener, this.#timing);
  }

  #established(resuming: boolean): void {
    this.#opened = Date.now();
    this.#tries = 0;
    this.#session.attach(this.#connection!, resuming);
    this.#outbox.attach(this.#connection!);
    this.#become({ state: "open" });
  }

  #said(message: Said): void {
    if (this.#session.said(message)) return;
    if (message.type === "published" || message.type === "error") {
      const answered = this.#outbox.answered(message);
      if (!answered && message.type === "error") this.emit("error", refusal(message));
    }
  }

  #ended(end: End): void {
    if (end.code === 1009) this.#outbox.dropLargest();
    if (this.#state === "open" && Date.now() - this.#opened >= STABLE) this.#backoff.reset();
    this.#forget();
    if (isFinal(end.code, end.status)) return this.#stop({ end });
    const hint = hinted(end.code, end.reason) ?? end.retryAfter;
    this.#notBefore = hint === undefined ? 0 : Date.now() + hint;
    this.#wait(hint ?? this.#backoff.next(), end);
  }

  #forget(): void {
    this.#connection = undefined;
    this.#session.detach();
    this.#outbox.detach();
  }

  #wait(delay: number, end?: End): void {
    this.#cancel?.();
    this.#cancel = after(delay, () => void this.#try());
    this.#become({ state: "waiting", delay, end });
  }

  /** Something may have changed: see whether the connection lives, or try again soon. */
  #wake(): void {
    this.#backoff.reset();
    if (this.#state !== "waiting") return this.#connection?.wake();
    const now = Date.now();
    // Never before the server wants it.
    if (now < this.#notBefore) this.#wait(this.#notBefore - now);
    else if (now - this.#attempted < RECENT) this.#wait(this.#backoff.next());
    else void this.#try();
  }

  #stop(change: Partial<StateChange>): void {
    this.#attempt++;
    this.#cancel?.();
    this.#unwake?.();
    this.#connection?.close();
    this.#forget();
    this.#outbox.close(new RequestError("the client is closed"));
    this.#become({ ...change, state: "closed" });
  }

  #become(change: StateChange): void {
    const known = change.state === "closed" && this.#state === "closed";
    this.#state = change.state;
    if (!known) this.emit("state", change);
  }
}
