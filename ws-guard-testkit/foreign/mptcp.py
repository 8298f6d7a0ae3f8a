"""Either end of a connection that asks for Multipath TCP, and whether it got it.

Arguments: `server` and a port, or `client`, source address, server address and port.
"""

import socket
import sys

IPPROTO_MPTCP = 262
TCP_IS_MPTCP = 43  # linux/tcp.h; 0 also for a socket that fell back


def report(end):
    print("multipath" if end.getsockopt(socket.IPPROTO_TCP, TCP_IS_MPTCP) else "plain", flush=True)


with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as this:
    if sys.argv[1] == "server":
        this.bind(("0.0.0.0", int(sys.argv[2])))
        this.listen()
        print("listening", flush=True)
        while True:
            with this.accept()[0] as end:
                end.sendall(end.recv(16))
                report(end)
    this.settimeout(5)
    this.bind((sys.argv[2], 0))
    this.connect((sys.argv[3], int(sys.argv[4])))
    this.sendall(b"hello")
    assert this.recv(16) == b"hello"
    report(this)
