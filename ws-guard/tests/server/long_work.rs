//! Messages that take long to compress, decompress, encrypt or read:
//! the work for one client does not keep others waiting.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use ws_guard_testkit::frame::{Frame, encode, opcode};

use super::{
    served::Served,
    stage::{Client, PATIENCE, REQUEST, connect},
};

const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";

/// Clients that connect and leave, until told otherwise.
struct Newcomers {
    over: Arc<AtomicBool>,
    coming: JoinHandle<(usize, usize)>,
}

impl Newcomers {
    fn come(served: &Served) -> Newcomers {
        let (over, address) = (Arc::new(AtomicBool::new(false)), served.address);
        let until = over.clone();
        let coming = spawn(move || {
            let (mut came, mut refused) = (0, 0);
            while !until.load(Ordering::Relaxed) {
                let mut stream = connect(address);
                stream.write_all(format!("{REQUEST}\r\n").as_bytes()).unwrap();
                let mut head = [0; 12];
                stream.read_exact(&mut head).unwrap();
                came += 1;
                refused += usize::from(head != *b"HTTP/1.1 101");
                sleep(Duration::from_millis(20));
            }
            (came, refused)
        });
        Newcomers { over, coming }
    }

    /// Stop them; return the number of clients, and of those refused.
    fn stop(self) -> (usize, usize) {
        self.over.store(true, Ordering::Relaxed);
        self.coming.join().unwrap()
    }
}

/// Compress a message as permessage-deflate does.
fn compressed(message: &[u8]) -> Frame {
    let mut wire = Vec::with_capacity(message.len() + message.len() / 8 + 1024);
    let mut compress = Compress::new(Compression::fast(), false);
    compress.compress_vec(message, &mut wire, FlushCompress::Sync).unwrap();
    assert_eq!(compress.total_in() as usize, message.len());
    wire.truncate(wire.len() - 4);
    Frame { rsv: 4, ..Frame::new(opcode::BINARY, wire) }
}

/// Decompress such a frame.
fn plain(frame: Frame, len: usize) -> Vec<u8> {
    if frame.rsv == 0 {
        return frame.payload;
    }
    let mut message = Vec::with_capacity(len + 1);
    let mut decompress = Decompress::new(false);
    let wire = [&frame.payload[..], &[0, 0, 0xFF, 0xFF]].concat();
    decompress.decompress_vec(&wire, &mut message, FlushDecompress::Sync).unwrap();
    message
}

/// A server with others on its only thread: some idle, some that come and go.
struct Scene {
    served: Served,
    idle: Vec<Client>,
    newcomers: Newcomers,
}

impl Scene {
    fn begin(more: &[&str]) -> Scene {
        // More than a busy machine delays a thread, and less than these messages take in a debug build.
        let limits = ["--stall-refuse", "600ms", "--stall-shed", "900ms", "--shed-idle", "100ms"];
        let served = Served::watchful(&[&limits, more].concat());
        let idle = (0..10).map(|_| Client::connect(served.address)).collect();
        let newcomers = Newcomers::come(&served);
        Scene { served, idle, newcomers }
    }

    /// Connect a client that compresses.
    /// A debug build on a busy machine takes long for its messages.
    fn busy(&self) -> Client {
        let client = Client::request(connect(self.served.address), DEFLATE, &[]);
        client.stream.set_read_timeout(Some(12 * PATIENCE)).unwrap();
        client.stream.set_write_timeout(Some(12 * PATIENCE)).unwrap();
        client
    }

    /// Check that all of them were accepted, and none closed.
    fn end(self) {
        let (came, refused) = self.newcomers.stop();
        println!("{came} came, {refused} were not let in");
        assert!(came > 0 && refused == 0, "{refused} of {came}: {:?}", self.served.process.lines());
        for mut client in self.idle {
            client.send(&[Frame::text("?")]);
            assert_ne!(client.next().expect("it is open").opcode, opcode::CLOSE);
        }
    }
}

/// Send a message a few times, one a second, and check that it comes back.
fn others_do_not_notice(message: &[u8]) {
    let scene = Scene::begin(&[]);
    let mut busy = scene.busy();
    let bytes = encode(&[compressed(message)]);
    for _ in 0..3 {
        let start = Instant::now();
        let (mut writer, bytes) = (busy.stream.try_clone().unwrap(), bytes.clone());
        let writing = spawn(move || writer.write_all(&bytes).unwrap());
        let echo = busy.next().expect("an echo");
        writing.join().unwrap();
        assert!(plain(echo, message.len()) == message, "it came back otherwise than it was sent");
        sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
    }
    scene.end();
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    bytes
}

#[test]
fn large_random_messages_do_not_exclude_others() {
    others_do_not_notice(&random(4 << 20));
}

#[test]
fn nor_do_larger_ones() {
    others_do_not_notice(&random(10 << 20));
}

#[test]
fn nor_do_those_that_get_shorter() {
    let letters: Vec<u8> = random(6 << 20).iter().map(|byte| b'a' + byte % 16).collect();
    others_do_not_notice(&letters);
}

/// Small messages that become large, so that all of them are read at once.
#[test]
fn nor_do_many_that_become_large() {
    let scene = Scene::begin(&[]);
    let mut busy = scene.busy();
    let message = vec![b'0'; 200_000];
    let bytes = encode(&vec![compressed(&message); 300]);
    busy.write(&bytes);
    for _ in 0..300 {
        assert!(plain(busy.next().expect("an echo"), message.len()) == message);
    }
    scene.end();
}

/// Publications of one buffer, each for many subscribers that do not read.
#[test]
fn nor_do_many_publications() {
    let scene = Scene::begin(&["--handler", "topic"]);
    let mut subscribers: Vec<Client> =
        (0..300).map(|_| Client::connect(scene.served.address)).collect();
    for subscriber in &mut subscribers {
        subscriber.send(&[Frame::text(r#"{"type":"subscribe","topic":"a"}"#)]);
        subscriber.message();
    }
    let mut publisher = scene.busy();
    let publish = Frame::text(r#"{"type":"publish","topic":"a","data":1}"#);
    publisher.write(&encode(&vec![publish; 3000]));
    for _ in 0..3000 {
        assert!(publisher.message().starts_with(br#"{"type":"published""#));
    }
    scene.end();
}

/// During work on a long message, the connection is alive both ways, and ordered.
#[test]
fn messages_behind_a_long_one_stay_behind_it() {
    let scene = Scene::begin(&[]);
    let mut busy = scene.busy();
    let letters: Vec<u8> = random(2 << 20).iter().map(|byte| b'a' + byte % 16).collect();
    let mut frames = vec![compressed(&letters), Frame::text("behind"), Frame::ping("?")];
    frames.extend([compressed(&letters), Frame::new(opcode::CLOSE, *b"\x03\xe8")]);
    let (mut writer, bytes) = (busy.stream.try_clone().unwrap(), encode(&frames));
    let writing = spawn(move || writer.write_all(&bytes).unwrap());
    assert!(plain(busy.next().unwrap(), letters.len()) == letters);
    assert_eq!(busy.next().unwrap().payload, b"behind");
    assert_eq!(busy.next().unwrap().payload, b"?");
    assert!(plain(busy.next().unwrap(), letters.len()) == letters);
    assert_eq!(busy.close_code(), Some(1000));
    writing.join().unwrap();
    scene.end();
}
