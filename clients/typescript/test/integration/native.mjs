// The bundle on Node's own WebSocket: a message there and back.
import { Client } from "../../dist/ws-guard-client.js";

const client = new Client(process.argv[2]);
const arrived = new Promise((resolve) => client.subscribe("chat", ({ data }) => resolve(data)));
const { position } = await client.publish("chat", "hello");
console.log(JSON.stringify({ data: await arrived, offset: position.offset }));
client.close();
