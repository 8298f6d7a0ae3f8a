// Echo server on gorilla/websocket; src/servers.rs describes its output.
//
// A ping "pause N" makes it pause for N ms, after an unsolicited pong; it prints the duration by its
// own clock: {"event":"paused","peer":P,"us":N}. A ping "ask" makes it send a ping as well.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
)

var connections, messages, pings, pongs atomic.Int64

func say(event map[string]any) {
	line, err := json.Marshal(event)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

func echo(writer http.ResponseWriter, request *http.Request) {
	upgrader := websocket.Upgrader{}
	connection, err := upgrader.Upgrade(writer, request, nil)
	if err != nil {
		return
	}
	defer connection.Close()
	connections.Add(1)
	say(map[string]any{"event": "connected", "peer": request.RemoteAddr})
	var hereMessages, herePings, herePongs int64
	answer := connection.PingHandler()
	connection.SetPingHandler(func(data string) error {
		pings.Add(1)
		herePings++
		soon := time.Now().Add(time.Second)
		if data == "ask" {
			connection.WriteControl(websocket.PingMessage, []byte("asked"), soon)
		}
		var pause int
		if n, _ := fmt.Sscanf(data, "pause %d", &pause); n == 0 {
			return answer(data)
		}
		begin := time.Now()
		connection.WriteControl(websocket.PongMessage, []byte("nobody asked"), soon)
		time.Sleep(time.Duration(pause) * time.Millisecond)
		err := answer(data)
		paused := time.Since(begin).Microseconds()
		say(map[string]any{"event": "paused", "peer": request.RemoteAddr, "us": paused})
		return err
	})
	connection.SetPongHandler(func(string) error {
		pongs.Add(1)
		herePongs++
		return nil
	})
	for {
		kind, message, err := connection.ReadMessage()
		if err == nil {
			messages.Add(1)
			hereMessages++
			err = connection.WriteMessage(kind, message)
		}
		if err != nil {
			say(map[string]any{
				"event":    "closed",
				"peer":     request.RemoteAddr,
				"why":      err.Error(),
				"messages": hereMessages,
				"pings":    herePings,
				"pongs":    herePongs,
			})
			return
		}
	}
}

func main() {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	listener, err := net.Listen("tcp", ":"+os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	say(map[string]any{"event": "listening", "port": port})
	go http.Serve(listener, http.HandlerFunc(echo))
	<-terminate
	say(map[string]any{
		"event":       "totals",
		"connections": connections.Load(),
		"messages":    messages.Load(),
		"pings":       pings.Load(),
		"pongs":       pongs.Load(),
	})
}
