// Rooms of socket.io over Redis Streams: node server.cjs PORT REDIS-URL
const { createServer } = require("node:http");
const { createAdapter } = require("@socket.io/redis-streams-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

const [port, url] = process.argv.slice(2);

async function main() {
  const redis = createClient({ url });
  redis.on("error", (error) => console.error(String(error)));
  await redis.connect();
  const http = createServer();
  const options = { transports: ["websocket"], perMessageDeflate: false, serveClient: false };
  const io = new Server(http, { ...options, adapter: createAdapter(redis) });
  io.on("connection", (socket) => {
    socket.on("subscribe", (topic, done) => {
      socket.join(topic);
      done();
    });
    socket.on("publish", (topic, data, done) => {
      io.to(topic).emit("message", topic, data);
      done();
    });
  });
  http.listen(Number(port), "127.0.0.1", () => console.log("listening"));
}

main();
