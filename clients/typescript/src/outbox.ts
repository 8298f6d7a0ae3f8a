import type { Connection } from "./connection.js";
import { RequestError, again, refusal } from "./errors.js";
import type { Published, Refused } from "./protocol.js";
import { after } from "./timers.js";

/** Bounds of what waits to be published, and of what may be on the way at a time. */
export interface OutboxLimits {
  messages: number;
  bytes: number;
  inFlight: number;
}

interface Publication {
  topic: string;
  data: unknown;
  key: string;
  size: number;
  /** Of the request on the present connection. */
  id: number | undefined;
  resolve(published: Published): void;
  reject(error: Error): void;
}

/** Publications in the order in which they were made, until the server has them. */
export class Outbox {
  readonly #waiting: Publication[] = [];
  #bytes = 0;
  #connection: Connection | undefined;
  /** Ends a wait that the server has asked for. */
  #held: (() => void) | undefined;

  constructor(readonly limits: OutboxLimits) {}

  get length(): number {
    return this.#waiting.length;
  }

  publish(topic: string, data: unknown, key = uuid()): Promise<Published> {
    const text = JSON.stringify(data ?? null);
    const size = text.length;
    if (text === "null") {
      return Promise.reject(new RequestError("no data", 400));
    }
    if (this.length >= this.limits.messages || this.#bytes + size > this.limits.bytes) {
      return Promise.reject(new RequestError("the outbox is full", 429));
    }
    this.#bytes += size;
    return new Promise((resolve, reject) => {
      // As it is now: the caller may change it before it is sent, or sent again.
      const copy: unknown = JSON.parse(text);
      this.#waiting.push({ topic, data: copy, key, size, id: undefined, resolve, reject });
      this.#flush();
    });
  }

  /** Send all that waits on a new connection. */
  attach(connection: Connection): void {
    this.#connection = connection;
    this.#flush();
  }

  /** The connection has gone, and with it what is known of what was on the way. */
  detach(): void {
    this.#connection = undefined;
    for (const publication of this.#waiting) publication.id = undefined;
  }

  /** A message was too large for the server, and will be next time. */
  dropLargest(): void {
    const sent = this.#waiting.filter(({ id }) => id !== undefined);
    const largest = sent.sort((a, b) => b.size - a.size)[0];
    if (largest) this.#take(largest).reject(new RequestError("too large", 413));
  }

  /** Take the answer to a publication; whether it was one. */
  answered(answer: Published | Refused): boolean {
    const publication = this.#waiting.find(({ id }) => id !== undefined && id === answer.id);
    if (!publication) return false;
    if (answer.type === "published") {
      this.#take(publication).resolve(answer);
    } else {
      const wait = again(answer);
      if (wait === undefined) this.#take(publication).reject(refusal(answer));
      else this.#hold(publication, wait);
    }
    this.#flush();
    return true;
  }

  /** Give up all that waits. */
  close(error: Error): void {
    this.#held?.();
    this.#held = undefined;
    for (const { reject } of this.#waiting.splice(0)) reject(error);
    this.#bytes = 0;
  }

  #hold(publication: Publication, ms: number): void {
    publication.id = undefined;
    this.#held?.();
    this.#held = after(ms, () => {
      this.#held = undefined;
      this.#flush();
    });
  }

  #flush(): void {
    if (!this.#connection || this.#held) return;
    let inFlight = 0;
    for (const publication of this.#waiting) {
      if (++inFlight > this.limits.inFlight) return;
      const { topic, data, key } = publication;
      publication.id ??= this.#connection.send({ type: "publish", topic, data, key });
    }
  }

  #take(publication: Publication): Publication {
    this.#waiting.splice(this.#waiting.indexOf(publication), 1);
    this.#bytes -= publication.size;
    return publication;
  }
}

/** A random key; pages without TLS have no `crypto.randomUUID`. */
function uuid(): string {
  return crypto.getRandomValues(new Uint32Array(4)).join("-");
}
