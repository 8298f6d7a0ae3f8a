//! Length-prefixed packets over TCP and over WebSocket: a server that echoes them, and its client.
//!
//! `cargo run -p ws-guard-server --example packets`
//!
//! A TCP stream has no messages: what is written at once arrives in pieces or joined, so the header
//! says where a packet ends. A WebSocket message holds exactly one packet. See how the packets lie in
//! segments with `ws-guard inspect --interface lo`.
use std::{
    error::Error,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use bytes::{Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};
use tungstenite::Message;
use ws_guard_server::packets::{LengthMagic, PacketError, Packets, single};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Maximum length of a body in bytes.
const MOST: usize = 1024;
const BODIES: [&str; 3] = ["first", "", "the third one, in the same write"];

fn packets() -> Packets<LengthMagic> {
    Packets::new(MOST)
}

/// Encode bodies, one packet after the other.
fn encode<B: AsRef<[u8]>>(bodies: &[B]) -> std::result::Result<BytesMut, PacketError> {
    let mut bytes = BytesMut::new();
    for body in bodies {
        packets().encode(body, &mut bytes)?;
    }
    Ok(bytes)
}

/// Read packets until the peer ends the stream or `wanted` have come, and hand each body over.
fn receive(stream: &mut TcpStream, wanted: usize, mut each: impl FnMut(Bytes)) -> Result<()> {
    let (mut packets, mut buffer, mut chunk) = (packets(), BytesMut::new(), [0; 7]);
    let mut count = 0;
    while count < wanted {
        // A read may end anywhere, also within a header.
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok(packets.decode_eof(&mut buffer).map(drop)?);
        }
        buffer.extend_from_slice(&chunk[..read]);
        while let Some(body) = packets.decode(&mut buffer)? {
            each(body);
            count += 1;
        }
    }
    Ok(())
}

fn echo_over_tcp(mut stream: TcpStream) -> Result<()> {
    let mut out = stream.try_clone()?;
    let mut bodies = Vec::new();
    receive(&mut stream, BODIES.len(), |body| bodies.push(body))?;
    Ok(out.write_all(&encode(&bodies)?)?)
}

fn ask_over_tcp(server: SocketAddr) -> Result<Vec<String>> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(&encode(&BODIES)?)?;
    let mut answers = Vec::new();
    receive(&mut stream, BODIES.len(), |body| {
        answers.push(String::from_utf8_lossy(&body).into_owned());
    })?;
    Ok(answers)
}

fn echo_over_websocket(stream: TcpStream) -> Result<()> {
    let mut socket = tungstenite::accept(stream).map_err(|error| error.to_string())?;
    loop {
        match socket.read()? {
            Message::Binary(message) => {
                let body = single(&mut packets(), message)?;
                socket.send(Message::Binary(encode(&[body])?.freeze()))?;
            }
            Message::Close(_) => return Ok(()),
            _ => {}
        }
    }
}

fn ask_over_websocket(server: SocketAddr) -> Result<Vec<String>> {
    let stream = TcpStream::connect(server)?;
    let (mut socket, _) = tungstenite::client(format!("ws://{server}/"), stream)
        .map_err(|error| error.to_string())?;
    let mut answers = Vec::new();
    for body in BODIES {
        socket.send(Message::Binary(encode(&[body])?.freeze()))?;
        if let Message::Binary(message) = socket.read()? {
            let body = single(&mut packets(), message)?;
            answers.push(String::from_utf8_lossy(&body).into_owned());
        }
    }
    socket.close(None)?;
    Ok(answers)
}

/// Start a server of one connection, and ask it.
fn run(
    name: &str,
    serve: fn(TcpStream) -> Result<()>,
    ask: fn(SocketAddr) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || serve(listener.accept()?.0));
    let answers = ask(address)?;
    println!("{name}, {address}: {answers:?}");
    server.join().map_err(|_| "the server panicked")??;
    Ok(answers)
}

fn main() -> Result<()> {
    run("over TCP", echo_over_tcp, ask_over_tcp)?;
    run("over WebSocket", echo_over_websocket, ask_over_websocket)?;
    Ok(())
}

#[test]
fn both_transports_bring_the_packets_back() -> Result<()> {
    assert_eq!(run("over TCP", echo_over_tcp, ask_over_tcp)?, BODIES);
    assert_eq!(run("over WebSocket", echo_over_websocket, ask_over_websocket)?, BODIES);
    Ok(())
}
