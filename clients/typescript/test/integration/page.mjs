// Serves a page with the bundle next to the browser, so that the network between it and the server has
// nothing but the client's connections.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

const server = process.argv[2];
const bundle = await readFile(new URL("../../dist/ws-guard-client.js", import.meta.url));

const page = `<!doctype html><title>Client</title><script type="module">
import { Client } from "/client.js";
const told = window.told = { data: [], gaps: [], states: [], events: [], agreed: [] };
addEventListener("pageshow", ({ persisted }) => persisted && told.events.push(["restored", Date.now()]));
for (const name of ["online", "offline"]) addEventListener(name, () => told.events.push([name, Date.now()]));
for (const name of ["freeze", "resume", "visibilitychange"]) document.addEventListener(name, () => told.events.push([name, Date.now()]));
const timing = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
class Seen extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols);
    this.addEventListener("open", () => told.agreed.push([new URL(url).search, this.protocol]));
  }
}
const client = window.client = new Client(${JSON.stringify(server)}, { timing, WebSocket: Seen });
client.on("state", ({ state, end }) => told.states.push({ state, at: Date.now(), reason: end?.reason }));
client.on("gap", (gap) => told.gaps.push(gap));
client.subscribe("chat", ({ data }) => told.data.push({ data, at: Date.now() }));
</script>`;

const other = "<!doctype html><title>Another page</title>";
const files = { "/": ["text/html", page], "/other": ["text/html", other], "/client.js": ["text/javascript", bundle] };
const http = createServer(({ url }, response) => {
  const [type, body] = files[url] ?? [];
  response.writeHead(body ? 200 : 404, { "content-type": type ?? "text/plain" }).end(body);
});
http.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: http.address().port })));
