import type { Connection } from "./connection.js";
import { again, refusal, type RequestError } from "./errors.js";
import { guarded } from "./emitter.js";
import { positionOf, type Beat, type Delivery, type Position, type Refused, type Said, type Subscribed } from "./protocol.js";
import { after } from "./timers.js";
import { Track } from "./track.js";

/** A publication as the application gets it. */
export interface Message<Data = unknown> {
  readonly topic: string;
  readonly data: Data;
  /** Missing on a topic without history. */
  readonly position?: Position | undefined;
  /** Of a queue topic: how often this entry was delivered. */
  readonly deliveries?: number | undefined;
  /** Of a queue topic: this entry is done. Called by itself once all handlers have returned. */
  readonly ack?: (() => void) | undefined;
}

/** Messages that are lost for this client; what was made of earlier ones may have to be made anew. */
export interface Gap {
  readonly topic: string;
  /** The last position before; missing if the topic had no history. */
  readonly from?: Position | undefined;
  /** Messages follow from here; missing if the topic has no history. */
  readonly to?: Position | undefined;
}

export type Handler = (message: Message<never>) => unknown;

/** What a session tells. */
export interface Audience {
  message(message: Message): void;
  gap(gap: Gap): void;
  missed(count: number): void;
  error(error: RequestError): void;
}

/** A request for the topic is made later. */
const LATER = -1;

/** One topic that is followed. */
class Entry {
  readonly handlers = new Set<Handler>();
  readonly track: Track;
  /** It has been followed, so that a new beginning is a gap. */
  known: boolean;
  /** It is followed on the present connection. */
  on = false;
  /** The request on the present connection that is not answered yet. */
  pending: number | undefined;
  /** Where the server can go on, while it is asked for an earlier position. */
  fallback: Position | undefined;
  /** How often a gap was asked about since the last message that was in order. */
  asked = 0;
  readonly ready: Promise<void>;
  resolve!: () => void;
  reject!: (error: Error) => void;

  constructor(
    readonly topic: string,
    since?: Position,
  ) {
    this.track = new Track(since);
    this.known = since !== undefined;
    this.ready = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.ready.catch(() => {});
  }
}

interface Token {
  text: string;
  /** When to ask for another, and when it is of no use any more. */
  renew: number;
  expires: number;
  topics: Set<string>;
}

/** How often what is missing is asked for before it is lost. */
const ASKED = 3;
/** With more messages than this since its issue, a token would replay too much. */
const REPLAYED = 256;

/** What outlives connections: topics, their positions, and the token that resumes them. */
export class Session {
  readonly #entries = new Map<string, Entry>();
  #connection: Connection | undefined;
  #token: Token | undefined;
  /** Topics of a token that is on its way. */
  #asked: Set<string> | undefined;
  /** Subscriptions have changed since then. */
  #stale = false;
  /** Messages since then: a token with earlier positions does as well, until the next heartbeat. */
  #messages = 0;
  /** Topics of a presented token that are still to be announced; infinite before `resumed`. */
  #resuming = 0;

  constructor(readonly audience: Audience) {}

  /** The token that the next connection presents. */
  token(): string | undefined {
    const token = this.#token;
    return token && Date.now() < token.expires && this.#messages <= REPLAYED ? token.text : undefined;
  }

  positions(): Record<string, Position> {
    const found: Record<string, Position> = {};
    for (const { topic, track } of this.#entries.values()) {
      if (track.position) found[topic] = track.position;
    }
    return found;
  }

  subscribe(topic: string, handler: Handler, since?: Position): Entry {
    let entry = this.#entries.get(topic);
    if (!entry) {
      entry = new Entry(topic, since);
      this.#entries.set(topic, entry);
      this.#ask(entry);
    }
    entry.handlers.add(handler);
    return entry;
  }

  unsubscribe(entry: Entry, handler: Handler): void {
    entry.handlers.delete(handler);
    if (entry.handlers.size > 0 || this.#entries.get(entry.topic) !== entry) return;
    this.#entries.delete(entry.topic);
    this.#stale = true;
    this.#connection?.send({ type: "unsubscribe", topic: entry.topic });
  }

  /** Follow everything on a new connection, which has presented a token or not. */
  attach(connection: Connection, resuming: boolean): void {
    this.#connection = connection;
    this.#resuming = resuming ? Infinity : 0;
    for (const entry of this.#entries.values()) {
      if (!(resuming && this.#token?.topics.has(entry.topic))) this.#ask(entry);
    }
  }

  detach(): void {
    this.#connection = undefined;
    this.#stale ||= this.#asked !== undefined;
    for (const entry of this.#entries.values()) {
      entry.on = false;
      entry.pending = undefined;
      entry.asked = 0;
      entry.fallback = undefined;
    }
  }

  /** Whether the heartbeat that is sent now asks for a token. */
  wantsToken(): boolean {
    if (!(this.#due() || this.#messages > 0) || this.#resuming > 0 || this.#entries.size === 0) return false;
    const on = [...this.#entries.values()].filter(({ on, pending }) => on && pending === undefined);
    this.#asked = new Set(on.map(({ topic }) => topic));
    this.#stale = false;
    this.#messages = 0;
    return true;
  }

  /** Whether the next connection needs another token than the one there is. */
  #due(): boolean {
    return this.#stale || Date.now() > (this.#token?.renew ?? 0);
  }

  /** A topic is subscribed to anew, which makes only a token that lacks it useless. */
  #changed(topic: string): void {
    this.#stale ||= !this.#token?.topics.has(topic);
  }

  /** Take a message of the server; whether it was for topics. */
  said(message: Said): boolean {
    if (message.type === "resumed") {
      this.#resuming = message.ok ? (message.topics ?? Infinity) : 0;
      if (!message.ok) this.#token = undefined;
      this.#resumed();
      return true;
    }
    // `resumed` comes first; what says anything else knows no tokens.
    if (this.#resuming === Infinity) {
      this.#resuming = 0;
      this.#token = undefined;
      this.#resumed();
    }
    switch (message.type) {
      case "message":
        this.#delivered(message);
        return true;
      case "subscribed":
        this.#subscribed(message);
        return true;
      case "missed":
        this.audience.missed(message.count);
        for (const entry of this.#entries.values()) if (entry.track.position) this.#ask(entry);
        return true;
      case "error":
        return this.#refused(message);
      default:
        return false;
    }
  }

  /** Take the answer to a heartbeat, which may have a token. */
  beaten({ resume, expires_in = 0 }: Beat): void {
    if (resume !== undefined) {
      const now = Date.now();
      const [renew, expires] = [now + expires_in * 500, now + expires_in * 1000];
      const topics = this.#asked ?? new Set();
      this.#token = resume === null ? undefined : { text: resume, renew, expires, topics };
      this.#asked = undefined;
    }
    this.#resuming = 0;
    this.#resumed();
  }

  /** All that the token had is announced: ask for what it had not. */
  #resumed(): void {
    if (this.#resuming > 0) return;
    for (const entry of this.#entries.values()) if (!entry.on) this.#ask(entry);
  }

  /** Request a topic, from the position on that it has, unless that is being done. */
  #ask(entry: Entry): void {
    if (!this.#connection || entry.pending !== undefined) return;
    const { topic, track } = entry;
    const since = track.position;
    entry.pending = this.#connection.send({ type: "subscribe", topic, ...(since && { since }) });
    this.#changed(topic);
  }

  #subscribed(message: Subscribed): void {
    const { topic, id, recovered } = message;
    let entry = this.#entries.get(topic);
    const position = positionOf(message);
    if (id !== undefined) {
      if (!entry || entry.pending !== id) return;
      entry.pending = undefined;
      this.#changed(topic);
      const { fallback } = entry;
      entry.fallback = undefined;
      if (!recovered) {
        this.#restart(entry, fallback ?? position);
        // What came meanwhile was not taken.
        if (!entry.track.isAt(position)) this.#ask(entry);
      }
    } else {
      const resumed = this.#token?.topics.has(topic) && this.#resuming > 0;
      if (resumed) this.#resuming--;
      if (!entry) {
        if (resumed) {
          this.#connection?.send({ type: "unsubscribe", topic });
          return this.#resumed();
        }
        // By the server's own decision.
        entry = new Entry(topic);
        this.#entries.set(topic, entry);
        this.#stale = true;
      }
      if (recovered) entry.track.position ?? entry.track.restart(position);
      // It may still have what this client has not seen.
      else if (!entry.on && entry.known && entry.track.position) {
        entry.fallback = position;
        this.#ask(entry);
      }
      // A request on its way is answered with what is in force.
      else if (entry.pending === undefined) this.#restart(entry, position);
    }
    entry.on = true;
    entry.known = true;
    entry.resolve();
    this.#resumed();
    this.#refresh();
  }

  /** Go on from a position that does not follow from the one before. */
  #restart(entry: Entry, to: Position | undefined): void {
    const { topic, track, known } = entry;
    const from = track.position;
    const same = from !== undefined && track.isAt(to);
    track.restart(to);
    entry.asked = 0;
    this.#stale = true;
    if (known && !same) this.audience.gap({ topic, from, to });
  }

  /** Get a token for changed subscriptions, once none of them is on its way. */
  #refresh(): void {
    const waiting = [...this.#entries.values()].some(({ pending }) => pending !== undefined);
    if (!waiting && this.#due()) this.#connection?.beat();
  }

  #delivered(message: Delivery): void {
    const entry = this.#entries.get(message.topic);
    // Before it is confirmed, this is of a subscription that was ended.
    if (!entry?.on) return;
    // Past a gap, even what seems to follow may be of a history that was written anew.
    if (entry.asked > 0 && entry.pending !== undefined) return;
    const verdict = entry.track.receive(message);
    if (verdict === "known") return;
    if (verdict === "gap") {
      if (entry.asked++ < ASKED) {
        entry.fallback ??= { epoch: message.epoch!, offset: message.offset! - 1 };
        return this.#ask(entry);
      }
      this.#restart(entry, positionOf(message));
    }
    entry.asked = 0;
    this.#messages++;
    this.#hand(entry, message);
  }

  #hand({ handlers }: Entry, delivery: Delivery): void {
    const { topic, data, entry, deliveries } = delivery;
    const connection = this.#connection;
    const ack = () => {
      // Elsewhere it is another delivery.
      if (connection === this.#connection) connection?.send({ type: "ack", topic, entry: entry! });
    };
    const position = positionOf(delivery);
    const message: Message = { topic, data, position, deliveries, ack: entry === undefined ? entry : ack };
    this.audience.message(message);
    if (entry === undefined) {
      for (const handler of handlers) guarded(() => handler(message as Message<never>));
    } else if (handlers.size > 0) {
      const all = [...handlers].map(async (handler) => handler(message as Message<never>));
      // What fails is delivered again; its error is reported as one that is not caught.
      void Promise.all(all).then(ack);
    }
  }

  #refused(message: Refused): boolean {
    const { id } = message;
    const entry = [...this.#entries.values()].find(({ pending }) => id !== undefined && pending === id);
    if (!entry) return false;
    const wait = again(message);
    if (wait === undefined) {
      this.#entries.delete(entry.topic);
      const error = refusal(message);
      entry.reject(error);
      this.audience.error(error);
      return true;
    }
    entry.pending = LATER;
    const connection = this.#connection;
    after(wait, () => {
      if (connection !== this.#connection || entry.pending !== LATER) return;
      entry.pending = undefined;
      if (this.#entries.get(entry.topic) === entry) this.#ask(entry);
    });
    return true;
  }
}

export type { Entry };
