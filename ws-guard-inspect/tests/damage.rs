//! Truncated or damaged captures, and other files: the error, and what was read.

mod common;
mod compressors;

use std::io::Write;

use common::{ETHERNET, Told, frame, inspect, inspected, pcap, pcapng, talk};
use compressors::{gzip, zstd};
use ws_guard_inspect::{Captures, Inspector, ReadError, Side, inspect as inspect_files};

/// Build a skippable zstd frame.
fn skippable(length: usize) -> Vec<u8> {
    [&[0x5A, 0x2A, 0x4D, 0x18][..], &(length as u32).to_le_bytes(), &vec![9; length]].concat()
}

/// Broken captures: each error has a position, and earlier packets are reported.
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
    // Incompressible, so that the damage is behind the bytes read.
    let mut rng = fastrand::Rng::with_seed(3);
    let mut talk = talk(false);
    for _ in 0..200 {
        let noise: Vec<u8> = (0..20_000).map(|_| rng.u8(..)).collect();
        talk.send(Side::Client, &frame(Side::Client, 0x82, &noise));
    }
    let file = gzip(&talk.pcap());
    let (told, totals, damage) = inspect(&file[..file.len() / 2]);
    let damage = damage.unwrap();
    assert!(damage.offset > 1_000_000, "{damage}");
    assert!(totals.packets > 50 && told.flow().frames_client > 50);
}

/// A file that unpacks to vast nothing is refused at its first bytes, not unpacked.
#[test]
fn a_zip_bomb_is_no_capture() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..8 {
        encoder.write_all(&[0; 1 << 20]).unwrap();
    }
    let (_, totals, damage) = inspect(&encoder.finish().unwrap());
    assert_eq!((damage.unwrap().offset, totals.packets), (0, 0));
}

/// Any bytes changed or cut: a result, and no panic.
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

/// Return the error message, its offset, and the number of packets read.
fn told(file: &[u8]) -> (String, u64, u64) {
    let (_, totals, damage) = inspect(file);
    let damage = damage.expect("damage");
    (damage.what, damage.offset, totals.packets)
}

#[test]
fn broken_zstd_is_found_and_named() {
    let file = talk(false).pcap();
    let end = file.len() as u64;
    let whole = zstd(&file);
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let other = [&whole[..], b"and more"].concat();
    // The last bytes are the checksum of what they decompress to.
    assert_eq!(
        told(&changed(whole.len() - 1)),
        ("the zstd data do not match their checksum".into(), end, 8)
    );
    assert_eq!(told(&other), ("something else behind the zstd data".into(), end, 8));
    assert_eq!(told(&whole[..whole.len() - 9]).0, "the zstd data end early");
    assert_eq!(told(&[&whole[..], &skippable(9)[..12]].concat()).0, "the zstd data end early");
}

#[test]
fn what_zstd_skips_is_skipped() {
    let file = talk(false).pcap();
    let (first, second) = file.split_at(333);
    for parts in [
        [skippable(0), zstd(first), zstd(second)],
        [zstd(first), skippable(70_000), zstd(second)],
        [zstd(first), zstd(second), skippable(3)],
    ] {
        assert_eq!(inspected(&parts.concat()).1.packets, 8);
    }
}

#[test]
fn what_is_empty_compressed_twice_or_obsolete_is_named() {
    let file = talk(false).pcap();
    for empty in [Vec::new(), gzip(b""), zstd(b"")] {
        assert_eq!(told(&empty), ("nothing in it".into(), 0, 0));
    }
    for twice in [gzip(&gzip(&file)), gzip(&zstd(&file)), zstd(&gzip(&file)), zstd(&zstd(&file))] {
        let (what, offset, packets) = told(&twice);
        assert!(what.starts_with("compressed twice") && (offset, packets) == (0, 0), "{what}");
    }
    assert_eq!(told(&gzip(&file)[..200]).0, "the gzip data end early");
    assert!(
        told(&[gzip(&file), b"and no more gzip".to_vec()].concat())
            .0
            .starts_with("broken gzip data")
    );
    let mut obsolete = pcapng(1, &talk(false).packets, false);
    // The third packet's block, after the section's, the interface's and two more.
    let mut at = 0;
    for _ in 0..4 {
        at += u32::from_le_bytes(obsolete[at + 4..at + 8].try_into().unwrap()) as usize;
    }
    obsolete[at] = 2;
    let (what, offset, packets) = told(&obsolete);
    assert!(what.contains("obsolete") && (offset, packets) == (at as u64, 2), "{what} {offset}");
}

/// One damaged file of a set costs only the rest of that one.
#[test]
fn the_files_behind_a_damaged_one_are_read() {
    let talk = talk(false);
    let folder = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d", "e"].map(|name| folder.path().join(name));
    let second = pcap(ETHERNET, &talk.packets[3..6]);
    std::fs::write(&names[0], pcap(ETHERNET, &talk.packets[..3])).unwrap();
    std::fs::write(&names[1], [&second[..], &[1; 10]].concat()).unwrap();
    std::fs::write(&names[2], b"no capture").unwrap();
    std::fs::write(&names[3], pcap(ETHERNET, &talk.packets[6..])).unwrap();
    std::fs::write(&names[4], b"").unwrap();
    let mut captures = Captures::open(&names).unwrap();
    let (told, totals, errors) =
        inspect_files(&mut captures, Inspector::new(Told::default()), || {});
    assert_eq!((totals.packets, told.flow().frames_client, told.flow().frames_server), (8, 3, 1));
    let damaged = |error: &ReadError| match error {
        ReadError::Damaged { name, damage } => (name.chars().last().unwrap(), damage.offset),
        error => panic!("{error}"),
    };
    let errors: Vec<_> = errors.iter().map(damaged).collect();
    assert_eq!(errors, [('b', second.len() as u64), ('c', 0), ('e', 0)]);
    let folder = Captures::open(&[folder.path().to_path_buf()]);
    assert!(matches!(folder, Err(ReadError::Open { .. })));
}
