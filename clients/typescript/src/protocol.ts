// What is said on the wire, see docs/messaging.md.

/** The publication after which a subscriber goes on. */
export interface Position {
  /** To be compared for equality only. */
  readonly epoch: string;
  readonly offset: number;
}

/** What a client asks for; `id` is added on the way. */
export type Request =
  | { type: "subscribe"; topic: string; since?: Position }
  | { type: "unsubscribe"; topic: string }
  | { type: "publish"; topic: string; data: unknown; key: string }
  | { type: "ack"; topic: string; entry: string }
  | { type: "heartbeat"; resume?: true };

interface Answer {
  id?: number;
}

export interface Subscribed extends Answer, Partial<Position> {
  type: "subscribed";
  topic: string;
  recovered?: boolean;
}

export interface Refused extends Answer {
  type: "error";
  error: string;
  remedy?: string;
  status?: number;
  retry_after_ms?: number;
}

export interface Published extends Answer, Partial<Position> {
  type: "published";
  topic: string;
  subscribers?: number;
  repeated?: boolean;
}

export interface Beat extends Answer {
  type: "heartbeat";
  resume?: string | null;
  expires_in?: number;
}

export interface Delivery extends Answer, Partial<Position> {
  type: "message";
  topic: string;
  data: unknown;
  entry?: string;
  deliveries?: number;
}

export type Said =
  | Subscribed
  | Refused
  | Published
  | Beat
  | Delivery
  | ({ type: "unsubscribed" | "acked"; topic: string } & Answer)
  | ({ type: "missed"; count: number } & Answer)
  | ({ type: "resumed"; ok: boolean; topics?: number; error?: string } & Answer);

/** The position in an answer or message of a topic with history. */
export function positionOf({ epoch, offset }: Partial<Position>): Position | undefined {
  return epoch === undefined || offset === undefined ? undefined : { epoch, offset };
}

/** A text message of the server, or `undefined` if it is none. */
export function parse(text: unknown): Said | undefined {
  try {
    const said = JSON.parse(text as string) as Said | null;
    return typeof said?.type === "string" ? said : undefined;
  } catch {
    return undefined;
  }
}
