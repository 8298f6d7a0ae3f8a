// The server's side of docs/messaging.md, as simple as possible, with faults on demand.
import type { Position } from "../src/index.js";

interface Entry extends Position {
  data: unknown;
  key?: string | undefined;
}

interface Topic {
  epoch: string;
  offset: number;
  history: Entry[];
  /** From which offset on each epoch was in force. */
  epochs: Position[];
}

export interface Answering {
  [field: string]: unknown;
}

/** One connection as the server sees it. */
export class Peer {
  /** Last position sent, by topic. */
  readonly topics = new Map<string, Position | undefined>();
  readonly requests: Answering[] = [];

  constructor(
    readonly model: Model,
    readonly tell: (text: string) => void,
    readonly hangUp: (code: number, reason: string) => void,
  ) {}

  say(message: Answering): void {
    this.tell(JSON.stringify(message));
  }

  receive(text: string): void {
    const request = JSON.parse(text) as Answering;
    this.requests.push(request);
    this.model.obey(this, request);
  }
}

export class Model {
  readonly peers = new Set<Peer>();
  readonly #topics = new Map<string, Topic>();
  #epochs = 0;
  /** Entries of history that are kept. */
  kept = 1000;
  /** The next publications are refused like this. */
  refusals: Answering[] = [];
  auto: string[] = [];
  tokens = true;
  /** Tokens are refused, for a reason that clients cannot know. */
  refusesTokens = false;
  /** Topics of these prefixes have no history. */
  plain = (topic: string) => topic.startsWith("plain");
  /** How long a token is valid, in seconds. */
  validity = 300;

  connect(
    token: string | undefined,
    tell: (text: string) => void,
    hangUp: (code: number, reason: string) => void,
  ): Peer {
    const peer = new Peer(this, tell, hangUp);
    this.peers.add(peer);
    if (token && this.tokens) this.#resume(peer, token);
    for (const topic of this.auto) {
      if (!peer.topics.has(topic)) this.#subscribe(peer, topic, undefined, undefined);
    }
    return peer;
  }

  gone(peer: Peer): void {
    this.peers.delete(peer);
  }

  topic(name: string): Topic {
    let topic = this.#topics.get(name);
    if (!topic) {
      const start = { epoch: this.#epoch(), offset: 0 };
      this.#topics.set(name, (topic = { ...start, history: [], epochs: [start] }));
    }
    return topic;
  }

  publish(name: string, data: unknown, key?: string): Entry & { repeated?: true } {
    const topic = this.topic(name);
    const before = key !== undefined && topic.history.find((entry) => entry.key === key);
    if (before && !this.plain(name)) return { ...before, repeated: true };
    const entry = { epoch: topic.epoch, offset: ++topic.offset, data, key };
    topic.history.push(entry);
    topic.history.splice(0, topic.history.length - this.kept);
    for (const peer of this.peers) if (peer.topics.has(name)) this.#deliver(peer, name, entry);
    return entry;
  }

  /** The epoch changes and the offsets go on. */
  turn(name: string): void {
    const topic = this.topic(name);
    topic.epoch = this.#epoch();
    topic.epochs = topic.epochs.filter(({ offset }) => offset <= topic.offset);
    topic.epochs.push({ epoch: topic.epoch, offset: topic.offset });
  }

  /** The last entries are lost, the epoch changes, and subscribers are told. */
  forget(name: string, count: number): void {
    const topic = this.topic(name);
    topic.offset = Math.max(0, topic.offset - count);
    topic.history = topic.history.filter(({ offset }) => offset <= topic.offset);
    this.turn(name);
    for (const peer of this.peers) {
      if (!peer.topics.has(name)) continue;
      const position = { epoch: topic.epoch, offset: topic.offset };
      peer.topics.set(name, position);
      peer.say({ type: "subscribed", topic: name, ...position, recovered: false });
    }
  }

  /** A subscriber was too slow: it loses the latest `count`. */
  overflow(peer: Peer, name: string, count: number): void {
    const lost = [...Array(count)].map((_, n) => n);
    peer.topics.delete(name);
    for (const n of lost) this.publish(name, `lost ${n} ${Math.random()}`);
    const { epoch, offset } = this.topic(name);
    peer.topics.set(name, { epoch, offset });
    peer.say({ type: "missed", count });
  }

  obey(peer: Peer, { type, id, topic, ...more }: Answering): void {
    const name = topic as string;
    switch (type) {
      case "subscribe":
        return this.#subscribe(peer, name, more["since"] as Position | undefined, id as number);
      case "unsubscribe":
        peer.topics.delete(name);
        return peer.say({ type: "unsubscribed", topic, id });
      case "publish":
        return this.#published(peer, name, more, id);
      case "heartbeat":
        return peer.say({ type, id, ...(more["resume"] === true && this.#token(peer)) });
      case "ack":
        return peer.say({ type: "acked", topic, entry: more["entry"], id });
      default:
        return peer.say({ type: "error", error: "this is no request", status: 400, id });
    }
  }

  #published(peer: Peer, topic: string, { data, key }: Answering, id: unknown): void {
    const refusal = this.refusals.shift();
    if (refusal) return peer.say({ type: "error", error: "refused", ...refusal, id });
    const { epoch, offset, repeated } = this.publish(topic, data, key as string);
    const position = this.plain(topic) ? {} : { epoch, offset };
    peer.say({ type: "published", topic, ...position, ...(repeated && { repeated }), id });
  }

  #subscribe(peer: Peer, name: string, since: Position | undefined, id: number | undefined): void {
    const { epoch, offset } = this.topic(name);
    const answer = { type: "subscribed", topic: name, ...(id !== undefined && { id }) };
    if (this.plain(name)) {
      peer.topics.set(name, undefined);
      return peer.say({ ...answer, ...(since && { recovered: false }) });
    }
    const missed = since && this.#missed(name, since);
    if (since && missed) {
      peer.topics.set(name, since);
      peer.say({ ...answer, epoch, offset, recovered: true });
      for (const entry of missed) this.#deliver(peer, name, entry);
    } else {
      const known = since ? undefined : peer.topics.get(name);
      const position = known ?? { epoch, offset };
      peer.topics.set(name, position);
      peer.say({ ...answer, ...position, ...(since && { recovered: false }) });
    }
  }

  /** What was published after a position, unless that is not known. */
  #missed(name: string, since: Position): Entry[] | undefined {
    const { offset, history, epochs } = this.topic(name);
    const its = epochs.findIndex(({ epoch }) => epoch === since.epoch);
    const [first, next] = [epochs[its], epochs[its + 1]];
    if (!first || since.offset < first.offset || since.offset > (next?.offset ?? offset)) return undefined;
    const missed = history.filter((entry) => entry.offset > since.offset);
    return missed.length === offset - since.offset ? missed : undefined;
  }

  #deliver(peer: Peer, topic: string, { epoch, offset, data }: Entry): void {
    const position = this.plain(topic) ? {} : { epoch, offset };
    if (!this.plain(topic)) peer.topics.set(topic, { epoch, offset });
    peer.say({ type: "message", topic, ...position, data });
  }

  #token(peer: Peer): Answering {
    const topics = [...peer.topics];
    const text = JSON.stringify({ topics, until: Date.now() + this.validity * 1000 });
    return { resume: Buffer.from(text).toString("base64url"), expires_in: this.validity };
  }

  #resume(peer: Peer, token: string): void {
    const text = Buffer.from(token, "base64url").toString();
    const { topics, until } = JSON.parse(text) as { topics: [string, Position?][]; until: number };
    if (Date.now() > until || this.refusesTokens) return peer.say({ type: "resumed", ok: false, error: "it has expired" });
    peer.say({ type: "resumed", ok: true, topics: topics.length });
    for (const [topic, since] of topics) {
      this.#subscribe(peer, topic, since ?? { epoch: "none", offset: 0 }, undefined);
    }
  }

  #epoch(): string {
    return `e${++this.#epochs}`;
  }
}
