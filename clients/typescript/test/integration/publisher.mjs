// Publishes next to the server, what it reads: a line of JSON each.
import { createInterface } from "node:readline";
import WebSocket from "ws";
import { Client } from "../../dist/ws-guard-client.js";

const client = new Client(process.argv[2], { WebSocket });
for await (const line of createInterface({ input: process.stdin })) {
  const { data } = JSON.parse(line);
  await client.publish("chat", data);
  console.log(JSON.stringify({ published: data }));
}
