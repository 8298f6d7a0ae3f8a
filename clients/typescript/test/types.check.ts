// What the types allow and what not; `npm run check` is the test.
import WebSocket from "ws";
import { Client, type Position } from "../src/index.js";

type Topics = { chat: { text: string }; count: number };

export function check(): void {
  const client = new Client<Topics>("/ws", { WebSocket });
  client.subscribe("chat", ({ data }) => data.text.length satisfies number);
  client.subscribe("count", ({ data }) => data.toFixed(), { epoch: "a", offset: 1 });
  void client.publish("count", 7).then(({ position }) => position satisfies Position | undefined);
  client.on("gap", ({ topic, from }) => [topic satisfies string, from?.offset]);
  // @ts-expect-error: no such topic.
  client.subscribe("other", () => {});
  // @ts-expect-error: not its data.
  void client.publish("count", "seven");
  // @ts-expect-error: no such event.
  client.on("messages", () => {});
  // Any topic, and the browser's own constructor.
  new Client("/ws", { WebSocket: globalThis.WebSocket }).subscribe("any", ({ data }) => data);
}
