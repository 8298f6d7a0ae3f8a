#!/bin/busybox sh
# The companion server, the guard before it, and one client that sends 40 pings and then a message.
# Prints what the guard has counted of the client.
ws-guard serve --listen 127.0.0.1:8080 --metrics-listen 127.0.0.1:9465 &
ws-guard run --interface lo --port 8080 --metrics-listen 127.0.0.1:9464 &

# COMMAND...: wait until it succeeds.
eventually() {
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 1000 ] || { echo "in vain: $*"; exit 1; }
        sleep 0.2
    done
    echo "done: $*"
}

eventually wget -O /dev/null http://127.0.0.1:9465/readyz
eventually wget -O /dev/null http://127.0.0.1:9464/readyz

mkfifo /tmp/said
nc 127.0.0.1 8080 </tmp/said >/tmp/heard &
exec 3>/tmp/said
printf '%s\r\n' 'GET / HTTP/1.1' 'Host: 127.0.0.1' 'Upgrade: websocket' 'Connection: Upgrade' \
    'Sec-WebSocket-Version: 13' 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' '' >&3
eventually grep ' 101 ' /tmp/heard
pings=40
while [ $pings -gt 0 ]; do
    # Masked with zeroes.
    printf '\211\200\000\000\000\000' >&3
    pings=$((pings - 1))
done
printf '\201\205\000\000\000\000after' >&3
# The echo: the flood has not broken the connection.
eventually grep after /tmp/heard
ws-guard status
echo "counted $(ws-guard sources -o json | tr -d "\n")"
