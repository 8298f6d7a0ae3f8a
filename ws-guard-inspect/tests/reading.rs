//! Capture formats, link layers and tunnels: the same connection in each.

mod common;
mod compressors;

use std::path::PathBuf;

use common::{ETHERNET, Packet, START, Talk, inspected, pcap, pcapng, talk};
use compressors::{gzip, zstd};
use ws_guard_inspect::{Captures, Inspector, Side, What, inspect as inspect_files};

/// Check the results of each form of the capture.
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
    // Two sections, the second with another byte order.
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
    check(&gzip(&file));
    check(&[gzip(first), gzip(second)].concat());
    check(&zstd(&file));
    check(&[zstd(first), zstd(second)].concat());
}

/// Return the packets with another header instead of the 14 bytes of Ethernet's.
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

/// Return the packets in a UDP tunnel, padded as Ethernet pads.
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
    // Inside a payload only the payload is lost.
    let mut inside = talk(false);
    inside.packets[5].cut = 100;
    let (told, totals) = inspected(&inside.pcap());
    assert_eq!((told.flow().frames_client, totals.snapped), (3, 1));
    assert_eq!(told.flow().of_client.snapped_bytes, 100);
    assert!(told.flow().of_client.in_step);
    // With a header in it, the later frames are unknown.
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
    let (told, _, errors) =
        inspect_files(&mut captures, Inspector::new(common::Told::default()), || {});
    assert!(errors.is_empty());
    assert_eq!(captures.progress().total, Some(captures.progress().read()));
    (captures.names().to_vec(), told)
}

#[test]
fn rotated_sets_are_read_in_order_of_their_packets() {
    let talk = talk(false);
    let folder = tempfile::tempdir().unwrap();
    // A ring that has wrapped around: the oldest packets are in the second file.
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
