// Protocols that are not WebSocket, between a real server and a real client. See src/others.rs.
"use strict";

const http = require("http");
const http2 = require("http2");
const tls = require("tls");

const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
// A shared key instead of certificates.
const psk = Buffer.alloc(16, 7);
const keyed = { ciphers: "PSK-AES128-GCM-SHA256", maxVersion: "TLSv1.2" };
const echo = (request, response) => request.pipe(response);

const serve = {
  http: () => http.createServer(echo),
  http2: () => http2.createServer(echo),
  tls: () => tls.createServer({ ...keyed, pskCallback: () => psk }, (socket) => socket.pipe(socket)),
};

// What sends `bytes` on one connection, and calls back with what came.
const connect = {
  http(host, port) {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    return (bytes, done) => {
      const options = { host, port, agent, method: "POST", path: "/" };
      http.request(options, (response) => collect(response, done)).end(bytes);
    };
  },
  http2(host, port) {
    const session = http2.connect(`http://${host.includes(":") ? `[${host}]` : host}:${port}`);
    return (bytes, done) => {
      const stream = session.request({ ":method": "POST", ":path": "/" });
      collect(stream, done);
      stream.end(bytes);
    };
  },
  tls(host, port) {
    const pskCallback = () => ({ psk, identity: "client" });
    const socket = tls.connect({ ...keyed, host, port, pskCallback, checkServerIdentity() {} });
    return (bytes, done) => {
      let come = Buffer.alloc(0);
      const take = (data) => {
        come = Buffer.concat([come, data]);
        if (come.length < bytes.length) return;
        socket.removeListener("data", take);
        done(come);
      };
      socket.on("data", take);
      socket.write(bytes);
    };
  },
};

function collect(stream, done) {
  const parts = [];
  stream.on("data", (data) => parts.push(data));
  stream.on("end", () => done(Buffer.concat(parts)));
}

// Lengths and bytes that differ, some like frames: without a header in front, they are none.
function body(n) {
  const bytes = Buffer.alloc(20 + ((n * 37) % 400), n);
  for (let at = 0; at + 6 <= bytes.length; at += 6) bytes.set([0x89, 0x80, 1, 2, 3, n], at);
  return bytes;
}

function talk(kind, host, port, pause) {
  const send = connect[kind](host, Number(port));
  let n = 0;
  const next = () => {
    const bytes = body(n);
    send(bytes, (come) => {
      n += 1;
      say({ event: "echoed", n, intact: bytes.equals(come) });
      setTimeout(next, Number(pause));
    });
  };
  next();
}

const [role, kind, ...rest] = process.argv.slice(2);
if (role === "serve") {
  serve[kind]().listen({ host: "::", port: Number(rest[0]) }, () => say({ event: "listening" }));
} else {
  talk(kind, ...rest);
}
