export { Client } from "./client.js";
export type { Events, Options, State, StateChange, Stored, Subscription, Url } from "./client.js";
export type { End, Socket, Timing } from "./connection.js";
export { RequestError } from "./errors.js";
export type { OutboxLimits } from "./outbox.js";
export type { Position } from "./protocol.js";
export type { Gap, Message } from "./session.js";
