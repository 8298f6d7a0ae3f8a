// What most unit tests begin with: a clock of their own, a network, and a client on it.
import { afterEach, beforeEach, vi } from "vitest";
import { Client, type Events, type Options } from "../src/index.js";
import type { Url } from "../src/client.js";
import { Network } from "./socket.js";

/** Everything that a client tells, in order. */
export interface Heard {
  messages: unknown[];
  gaps: Events["gap"][];
  missed: number[];
  errors: Events["error"][];
  states: Events["state"][];
}

const clients: Client[] = [];

/** Give every test of the file its own clock, and close what it has opened. */
export function useClock(): void {
  beforeEach(() => {
    vi.useFakeTimers();
    vi.spyOn(Math, "random").mockReturnValue(0.5);
  });
  afterEach(() => {
    for (const client of clients.splice(0)) client.close();
    vi.useRealTimers();
    vi.restoreAllMocks();
    vi.unstubAllGlobals();
  });
}

export function start(network = new Network(), options: Options = {}, url: Url = "ws://server/ws") {
  const client = new Client(url, { WebSocket: network.WebSocket, ...options });
  clients.push(client);
  const heard = listen(client);
  return { client, network, model: network.model, heard };
}

export function listen(client: Client): Heard {
  const heard: Heard = { messages: [], gaps: [], missed: [], errors: [], states: [] };
  client.on("message", ({ data }) => heard.messages.push(data));
  client.on("gap", (gap) => heard.gaps.push(gap));
  client.on("missed", (count) => heard.missed.push(count));
  client.on("error", (error) => heard.errors.push(error));
  client.on("state", (state) => heard.states.push(state));
  return heard;
}

/** Let time go by. */
export async function pass(ms: number): Promise<void> {
  await vi.advanceTimersByTimeAsync(ms);
}

/** The whole machine sleeps: the clock goes on, and no timer fires until it wakes. */
export function sleep(ms: number): void {
  vi.setSystemTime(Date.now() + ms);
}
