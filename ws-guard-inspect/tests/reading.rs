//! Forms of captures, link layers and tunnels: the same connection in each.

mod common;

use std::{io::Write, path::PathBuf};

use common::{ETHERNET, Packet, START, Talk, frame, inspect, inspected, pcap, pcapng};
use ws_guard_inspect::{Captures, Inspector, Side, What, inspect as inspect_files};

/// Two frames in a segment, a ping and its pong.
fn talk(v6: bool) -> Talk {
    let mut talk = Talk::open(v6, [100, u32::MAX - 20], false);
    let two = [frame(Side::Client, 0x81, b"one"), frame(Side::Client, 0x82, &[7; 300])].concat();
    talk.send(Side::Client, &two);
    talk.send(Side::Server, &frame(Side::Server, 0x89, b"alive"));
    talk.send(Side::Client, &frame(Side::Client, 0x8A, b"alive"));
    talk
}

/// What each form of the capture has to say.
fn check(file: &[u8]) {
    let (told, totals) = inspected(file);
    let flow = told.flow();
    assert_eq!((flow.frames_client, flow.frames_server), (3, 1));
    assert_eq!((flow.pings_server, flow.pongs_client, flow.coalesced_segments), (1, 1, 1));
    assert_eq!(flow.of_server.pings_answered, 1);
    assert_eq!((totals.websocket, totals.unreadable, totals.snapped), (1, 0, 0));
    let lengths: Vec<u64> = told.frames(Side::Client).iter().map(|(_, _, f)| f.length).collect();
    assert_eq!(lengths, [3, 300, 5]);
}

#[test]
fn pcap_and_pcapng_in_either_byte_order() {
    let talk = talk(false);
    check(&talk.pcap());
    check(&pcapng(ETHERNET as u16, &talk.packets, false));
    check(&pcapng(ETHERNET as u16, &talk.packets, true));
    // Two sections, of which the second has another byte order.
    let (first, second) = talk.packets.split_at(7);
    let parts = [pcapng(1, first, true), pcapng(1, second, false)];
    check(&parts.concat());
    let mut nanoseconds = talk.pcap();
    nanoseconds[..4].copy_from_slice(&0xA1B2_3C4Du32.to_le_bytes());
    check(&nanoseconds);
}

#[test]
fn times_are_those_of_the_packets() {
    let talk = talk(false);
    for file in [talk.pcap(), pcapng(1, &talk.packets, true)] {
        let (told, _) = inspected(&file);
        assert_eq!(told.flow().first, START);
        assert_eq!(told.flow().last, START + 7_000_000);
        let spread = told.flow().of_server.ping_to_pong.unwrap();
        assert_eq!((spread.min_us, spread.median_us, spread.max_us), (1000, 1000, 1000));
    }
}

#[test]
fn gzip_and_zstd_also_in_several_members() {
    let file = talk(false).pcap();
    let (first, second) = file.split_at(333);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level)
    };
    check(&gzip(&file));
    check(&[gzip(first), gzip(second)].concat());
    check(&zstd(&file));
    check(&[zstd(first), zstd(second)].concat());
}

/// The packets with another header in place of the 14 bytes of Ethernet's.
fn relinked(talk: &Talk, link: u32, header: impl Fn(u16) -> Vec<u8>) -> Vec<u8> {
    let relink = |packet: &Packet| {
        let ether_type = u16::from_be_bytes([packet.data[12], packet.data[13]]);
        let data = [&header(ether_type)[..], &packet.data[14..]].concat();
        Packet { data, ..packet.clone() }
    };
    pcap(link, &talk.packets.iter().map(relink).collect::<Vec<_>>())
}

#[test]
fn link_types_and_both_ip_versions() {
    for v6 in [false, true] {
        let talk = talk(v6);
        check(&talk.pcap());
        let cooked = |kind: u16| [&[0; 14][..], &kind.to_be_bytes()].concat();
        check(&relinked(&talk, 113, cooked));
        check(&relinked(&talk, 276, |kind| [&kind.to_be_bytes()[..], &[0; 18]].concat()));
        for raw in [12, 101, if v6 { 229 } else { 228 }] {
            check(&relinked(&talk, raw, |_| Vec::new()));
        }
        let family = if v6 { 30u32 } else { 2 };
        check(&relinked(&talk, 0, |_| family.to_le_bytes().to_vec()));
        check(&relinked(&talk, 108, |_| family.to_be_bytes().to_vec()));
        let tags = |kind: u16| {
            let tagged = [0x88, 0xA8, 0, 5, 0x81, 0, 0, 7];
            [&[2; 12][..], &tagged, &kind.to_be_bytes()].concat()
        };
        check(&relinked(&talk, ETHERNET, tags));
    }
}

/// The packets inside UDP to a port, behind a tunnel's header; padded as Ethernet pads.
fn tunnelled(talk: &Talk, port: u16, header: &[u8], skip: usize) -> Vec<u8> {
    let wrap = |packet: &Packet| {
        let inside = [header, &packet.data[skip..]].concat();
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = builder.ipv4([192, 0, 2, 1], [192, 0, 2, 2], 9).udp(5555, port);
        let mut data = Vec::new();
        builder.write(&mut data, &inside).unwrap();
        Packet { data: [data, vec![0; 6]].concat(), ..packet.clone() }
    };
    pcap(ETHERNET, &talk.packets.iter().map(wrap).collect::<Vec<_>>())
}

#[test]
fn vxlan_geneve_and_ip_in_ip() {
    let talk = talk(false);
    check(&tunnelled(&talk, 4789, &[8, 0, 0, 0, 0, 0, 9, 0], 0));
    check(&tunnelled(&talk, 6081, &[1, 0, 0x65, 0x58, 0, 0, 9, 0, 1, 2, 3, 4], 0));
    check(&tunnelled(&talk, 6081, &[0, 0, 0x08, 0, 0, 0, 9, 0], 14));
    let wrap = |packet: &Packet| {
        let inside = &packet.data[14..];
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = builder.ipv4([192, 0, 2, 1], [192, 0, 2, 2], 9);
        let mut data = Vec::new();
        builder.write(&mut data, etherparse::ip_number::IPV4, inside).unwrap();
        Packet { data, ..packet.clone() }
    };
    check(&pcap(ETHERNET, &talk.packets.iter().map(wrap).collect::<Vec<_>>()));
}

#[test]
fn what_a_snapped_packet_lacks_is_told_and_not_guessed() {
    // Inside a payload nothing but the payload is lost.
    let mut inside = talk(false);
    inside.packets[5].cut = 100;
    let (told, totals) = inspected(&inside.pcap());
    assert_eq!((told.flow().frames_client, totals.snapped), (3, 1));
    assert_eq!(told.flow().of_client.snapped_bytes, 100);
    assert!(told.flow().of_client.in_step);
    // With a header in it, the frames behind are not known.
    let mut header = talk(false);
    header.packets[5].cut = 310;
    let (told, _) = inspected(&header.pcap());
    assert_eq!(told.flow().frames_client, 1);
    assert!(!told.flow().of_client.in_step && told.flow().of_server.in_step);
    assert!(told.of(Side::Client).iter().any(|finding| finding.what == What::Unsynced));
}

/// Read files as the command line does.
fn read(files: &[PathBuf]) -> (Vec<String>, common::Told) {
    let mut captures = Captures::open(files).unwrap();
    let (told, _, error) =
        inspect_files(&mut captures, Inspector::new(common::Told::default()), || {});
    assert!(error.is_none());
    assert_eq!(captures.progress().total, Some(captures.progress().read()));
    (captures.names().to_vec(), told)
}

#[test]
fn rotated_sets_are_read_in_order_of_their_packets() {
    let talk = talk(false);
    let folder = tempfile::tempdir().unwrap();
    // A ring that has come round: the oldest packets are in the second file.
    let names = ["app.pcap0", "app.pcap1", "app.pcap2"].map(|name| folder.path().join(name));
    let parts = [&talk.packets[6..], &talk.packets[..3], &talk.packets[3..6]];
    for (name, part) in names.iter().zip(parts) {
        std::fs::write(name, pcap(ETHERNET, part)).unwrap();
    }
    let (order, told) = read(&names);
    let order: Vec<_> = order.iter().map(|name| name.chars().last().unwrap()).collect();
    assert_eq!(order, ['1', '2', '0']);
    assert_eq!((told.flow().frames_client, told.flow().frames_server), (3, 1));
    // Packets are counted by file, as other tools count them.
    let frames = told.findings.iter().filter(|(_, f)| f.direction == Side::Server);
    let first = frames.map(|(_, finding)| (finding.at.file, finding.at.packet)).next();
    assert_eq!(first, Some((3, 1)));
}

/// Broken captures: each says where, and tells what was read before.
#[test]
fn broken_captures_say_where() {
    let good = talk(false).pcap();
    let ng = pcapng(1, &talk(false).packets, false);
    let last = good.len() - talk(false).packets[7].data.len() - 16;
    let with = |file: &[u8], at: usize, bytes: &[u8]| {
        let mut file = file.to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let endless = with(&good, last + 8, &u32::MAX.to_le_bytes());
    let rows: [(&str, Vec<u8>, u64, u64); 9] = [
        ("empty", Vec::new(), 0, 0),
        ("text", b"GET / HTTP/1.1\r\nHost: no capture at all\r\n\r\n".to_vec(), 0, 0),
        ("cut in the header", good[..20].to_vec(), 0, 0),
        ("cut in the last packet", good[..good.len() - 1].to_vec(), last as u64, 7),
        ("cut in the last packet's header", good[..last + 7].to_vec(), last as u64, 7),
        ("a packet of 4 GiB", endless, last as u64, 7),
        ("a section of 4 GiB", with(&ng, 4, &0xFFFF_FFFCu32.to_le_bytes()), 0, 0),
        ("a block of 4 GiB", with(&ng, 28 + 32 + 4, &0xFFFF_FFFCu32.to_le_bytes()), 60, 0),
        ("an unknown interface", with(&ng, 28 + 32 + 8, &[9]), 60, 0),
    ];
    for (what, file, offset, packets) in rows {
        let (_, totals, damage) = inspect(&file);
        let damage = damage.unwrap_or_else(|| panic!("{what}: no damage"));
        assert_eq!((damage.offset, totals.packets), (offset, packets), "{what}: {damage}");
    }
    let (told, totals, _) = inspect(&good[..good.len() - 1]);
    assert_eq!((totals.websocket, told.flow().frames_server), (1, 1));
}

#[test]
fn broken_compression_says_so_and_keeps_what_was_read() {
    // Incompressible, so that the damage lies behind what was read.
    let mut rng = fastrand::Rng::with_seed(3);
    let mut talk = talk(false);
    for _ in 0..200 {
        let noise: Vec<u8> = (0..20_000).map(|_| rng.u8(..)).collect();
        talk.send(Side::Client, &frame(Side::Client, 0x82, &noise));
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&talk.pcap()).unwrap();
    let file = encoder.finish().unwrap();
    let (told, totals, damage) = inspect(&file[..file.len() / 2]);
    let damage = damage.unwrap();
    assert!(damage.offset > 1_000_000, "{damage}");
    assert!(totals.packets > 50 && told.flow().frames_client > 50);
}

/// A file that unpacks to much more of nothing is refused at its first bytes, not unpacked.
#[test]
fn a_zip_bomb_is_no_capture() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..8 {
        encoder.write_all(&[0; 1 << 20]).unwrap();
    }
    let (_, totals, damage) = inspect(&encoder.finish().unwrap());
    assert_eq!((damage.unwrap().offset, totals.packets), (0, 0));
}

/// Any bytes changed or cut: an answer, and no panic.
#[test]
fn any_damage_is_survived() {
    let files = [talk(false).pcap(), pcapng(1, &talk(true).packets, false), talk(true).pcap()];
    ws_guard_oracle::cases::cases(150, |rng| {
        let mut file = files[rng.usize(..files.len())].clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..file.len());
            file[at] = [0, 0xFF, 0x7F, rng.u8(..)][rng.usize(..4)];
        }
        file.truncate(rng.usize(file.len() / 2..=file.len()));
        inspect(&file);
    });
}
