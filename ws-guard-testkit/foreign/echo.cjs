// An echo server on npm's `ws`. See src/servers.rs for what it prints.
"use strict";

const { WebSocketServer } = require("ws");

const totals = { event: "totals", connections: 0, messages: 0, pings: 0, pongs: 0 };
const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const port = Number(process.argv[2]);

const server = new WebSocketServer({ host: "::", port, perMessageDeflate: false });

server.on("listening", () => say({ event: "listening", port }));

server.on("connection", (socket, request) => {
  const { remoteAddress, remotePort } = request.socket;
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
