// A client on npm's `ws`: says some things, waits for their echoes, closes with 4001. Arguments: URL, and
// "deflate" for permessage-deflate.
"use strict";

const { WebSocket } = require("ws");

const perMessageDeflate = process.argv[3] === "deflate" ? { threshold: 0 } : false;
const socket = new WebSocket(process.argv[2], { perMessageDeflate });
const said = ["", "one", "é".repeat(300), "w".repeat(70000), Buffer.alloc(200)];
let heard = 0;

socket.on("open", () => {
  socket.ping("alive");
  for (const what of said) socket.send(what);
  socket.send("in two ", { fin: false });
  socket.send("frames");
});
socket.on("message", () => {
  heard += 1;
  if (heard === said.length + 1) socket.close(4001, "enough");
});
