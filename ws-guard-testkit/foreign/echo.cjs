// An echo server on npm's `ws`. See src/servers.rs for what it prints.
"use strict";

const http = require("http");
const { WebSocketServer } = require("ws");

const totals = { event: "totals", connections: 0, messages: 0, pings: 0, pongs: 0 };
const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const port = Number(process.argv[2]);

// An ordinary request gets its own body back, in writes of its own.
const web = http.createServer((request, response) => {
  response.writeHead(200, { "content-length": request.headers["content-length"] || 0 });
  response.flushHeaders();
  request.pipe(response);
});
const perMessageDeflate = process.env.ECHO_DEFLATE ? { threshold: 0 } : false;
const server = new WebSocketServer({ server: web, perMessageDeflate });

web.listen({ host: "::", port }, () => say({ event: "listening", port }));

// As much more in the answer's head as `/?pad=N` asks for.
server.on("headers", (headers, request) => {
  const pad = Number(new URL(request.url, "http://server").searchParams.get("pad"));
  if (pad > 0) headers.push("X-Padding: " + "x".repeat(pad));
});

server.on("connection", (socket, request) => {
  const { remoteAddress, remotePort } = request.socket;
  // Of a client that has gone meanwhile.
  if (remoteAddress === undefined) return;
  // A socket of both families shows IPv4 addresses mapped.
  const host = remoteAddress.replace(/^::ffff:(?=\d+\.)/, "");
  const peer = host.includes(":") ? `[${host}]:${remotePort}` : `${host}:${remotePort}`;
  let why = null;
  const counts = { messages: 0, pings: 0, pongs: 0 };
  const count = (kind) => {
    counts[kind] += 1;
    totals[kind] += 1;
  };
  totals.connections += 1;
  say({ event: "connected", peer });
  socket.on("message", (data, binary) => {
    count("messages");
    socket.send(data, { binary });
  });
  socket.on("ping", () => count("pings"));
  socket.on("pong", () => count("pongs"));
  socket.on("error", (error) => (why = error.message));
  socket.on("close", () => say({ event: "closed", peer, why, ...counts }));
});

process.on("SIGTERM", () => {
  process.stdout.write(JSON.stringify(totals) + "\n", () => process.exit(0));
});
