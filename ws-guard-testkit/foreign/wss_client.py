"""A WebSocket client inside TLS that knows each of its records.

TLS and WebSocket are kept off the socket (memory BIOs, a protocol without I/O), so that what is
written to it can be taken apart into records first, by code that has nothing of the guard's.

One argument, a JSON object: source, server, port, tls ("1.2", "1.3"), compression (true, false), and
one of these, or one behind the other:
  pings: so many, as fast as they go, `length` bytes of payload each, `coalesce` of them in a record;
  chat: seconds to go on for, with `pause` [least, most] seconds between messages of `words` [least,
  most] words, `after` so many seconds that are not measured. `echo_ms` is how long their echoes took:
  half of them, 99 of 100, and all.
`pieces` is how many bytes a TCP segment has at most. Prints one line of JSON.
"""

import collections
import json
import random
import select
import socket
import ssl
import sys
import time

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.uri import parse_uri

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
APPLICATION_DATA = 23
WINDOW = 10
# Maximum wait for an outstanding answer, in seconds.
PATIENCE = 20
WORDS = """the be to of and a in that have I it for not on with he as you do at this but his by from
they we say her she or an will my one all would there their what so up out if about who get which go me
when make can like time no just him know take people into year your good some could them see other than
then now look only come its over think also back after use two how our work first well way even new want
because any these give day most us ok lol thanks https://example.org/a/longer/path?with=parameters""".split()


class Client:
    def __init__(self, source, server, port, tls, compression=False, pieces=1 << 16):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The test created the certificate itself, without a specific subject.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = VERSIONS[tls]
        context.set_ciphers("ALL")  # of TLS 1.2; the server chooses
        self.pieces = pieces
        self.socket = socket.create_connection((server, port), 5, (source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        self.records = []  # (type, length, when), of all that was written
        self.unread = b""
        self.pongs = 0
        self.messages = 0
        self.said, self.took = collections.deque(), []  # when what has no echo yet was said; seconds
        self.handshake()
        extensions = [ClientPerMessageDeflateFactory()] if compression else None
        uri = parse_uri(f"wss://{server}:{port}/")
        self.ws = ClientProtocol(uri, extensions=extensions)
        self.ws.send_request(self.ws.connect())
        self.flush()
        while not self.ws.handshake_exc and self.ws.state.name == "CONNECTING":
            self.receive(5)
        if self.ws.handshake_exc:
            raise self.ws.handshake_exc

    def handshake(self):
        while True:
            try:
                self.tls.do_handshake()
                return self.write()
            except ssl.SSLWantReadError:
                self.write()
                if not (data := self.socket.recv(1 << 16)):
                    raise ConnectionError("closed in the handshake")
                self.incoming.write(data)

    def write(self):
        """What TLS has for the socket, and which records that is."""
        data = self.outgoing.read()
        self.unread += data
        while len(self.unread) >= 5:
            length = int.from_bytes(self.unread[3:5], "big")
            if len(self.unread) < 5 + length:
                break
            self.records.append((self.unread[0], length, time.monotonic()))
            self.unread = self.unread[5 + length :]
        for at in range(0, len(data), self.pieces):
            self.socket.sendall(data[at : at + self.pieces])

    def flush(self):
        for data in self.ws.data_to_send():
            if data:
                self.tls.write(data)
        self.write()

    def receive(self, timeout):
        """Whatever comes within `timeout`; False where nothing does."""
        if not select.select([self.socket], [], [], timeout)[0]:
            return False
        if not (data := self.socket.recv(1 << 16)):
            raise ConnectionError("closed by the server")
        self.incoming.write(data)
        try:
            while plain := self.tls.read(1 << 16):
                self.ws.receive_data(plain)
        except ssl.SSLWantReadError:
            pass
        for event in self.ws.events_received():
            opcode = getattr(event, "opcode", None)
            self.pongs += opcode is Opcode.PONG
            self.messages += opcode in (Opcode.TEXT, Opcode.CONT)
            if opcode in (Opcode.TEXT, Opcode.CONT) and event.fin and self.said:
                self.took.append(time.monotonic() - self.said.popleft())
        return True

    def ping(self, count, length, coalesce, patience):
        """So many pings, and what is answered until `patience` seconds are silent."""
        self.socket.settimeout(patience)
        for _ in range(0, count, coalesce):
            for _ in range(coalesce):
                self.ws.send_ping(random.randbytes(length))
            if coalesce > 1:
                self.tls.write(b"".join(self.ws.data_to_send()))
            self.flush()
            while self.receive(0):
                pass
        while self.pongs < count:
            if not self.receive(patience):
                raise TimeoutError("no answer to all of them")

    def chat(self, seconds, pause, words, after=0):
        begin = time.monotonic() + after
        end = begin + seconds
        while (now := time.monotonic()) < end:
            text = " ".join(random.choices(WORDS, k=random.randint(*words)))
            if now >= begin:
                self.said.append(now)
            self.ws.send_text(text.encode())
            self.flush()
            until = min(now + random.uniform(*pause), end)
            while (left := until - time.monotonic()) > 0:
                self.receive(left)
        while self.said and self.receive(PATIENCE):
            pass

    def echo_ms(self):
        took = sorted(self.took)
        return [1000 * took[min(len(took) * share // 100, len(took) - 1)] for share in (50, 99, 100) if took]

    def peak(self, least, most):
        """Most records of such a length in any window."""
        window, peak = collections.deque(), 0
        for kind, length, when in self.records:
            if kind == APPLICATION_DATA and least <= length <= most:
                window.append(when)
                while window[0] <= when - WINDOW:
                    window.popleft()
                peak = max(peak, len(window))
        return peak


def main(wanted):
    pings, chat = wanted.pop("pings", None), wanted.pop("chat", None)
    how = {name: wanted.pop(name) for name in ("length", "coalesce", "patience", "pause", "words", "after") if name in wanted}
    client = Client(**wanted)
    before, silent = len(client.records), False
    try:
        if pings:
            patience = how.get("patience", PATIENCE)
            client.ping(pings, how.get("length", 0), how.get("coalesce", 1), patience)
        if chat:
            client.chat(chat, how["pause"], how["words"], how.get("after", 0))
    except (TimeoutError, ConnectionError):
        silent = True
    lengths = collections.Counter(length for kind, length, _ in client.records if kind == APPLICATION_DATA)
    print(
        json.dumps(
            {
                "local": "%s:%s" % client.socket.getsockname()[:2],
                "cipher": client.tls.cipher()[0],
                # The first one is the ClientHello: the guard counts from the server's answer on.
                "records": len(client.records) - 1,
                "small": sum(count for length, count in lengths.items() if 22 <= length <= 208),
                "written": len(client.records) - before,
                "lengths": sorted({length for _, length, _ in client.records[before:]}),
                "peak": client.peak(22, 208),
                "pongs": client.pongs,
                "messages": client.messages,
                "echo_ms": client.echo_ms(),
                "took": len(client.took),
                "unanswered": len(client.said),
                "silent": silent,
            }
        ),
        flush=True,
    )
    # The connection stays open until no more queries come.
    sys.stdin.read()


main(json.loads(sys.argv[1]))
