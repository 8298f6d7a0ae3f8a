//! Handshakes: admission, and the answers to refused clients.

use std::{io::Write, net::Ipv4Addr, time::Duration};

use super::stage::{Client, PATIENCE, REQUEST, Stage, connect, connect_from, refused, wait_for};

#[test]
fn refusals_say_why() {
    let stage = Stage::start(|_| {});
    for (request, status, reason) in [
        ("GET / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(), 426, "no_upgrade"),
        (format!("{REQUEST}\r\n").replace("GET", "POST"), 405, "not_get"),
        (format!("{REQUEST}\r\n").replace("13", "12"), 426, "version"),
        (format!("{REQUEST}\r\n").replace("dGhl", "!!!!"), 400, "key"),
        (format!("{REQUEST}\r\n").replace("Host: test\r\n", ""), 400, "host"),
        (format!("{REQUEST}Transfer-Encoding: chunked\r\n\r\n"), 400, "body"),
    ] {
        let stream = connect(stage.address);
        let local = stream.local_addr().unwrap();
        let answer = refused(stream, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        let line = stage.logged("refused", local);
        assert_eq!(
            (line["refused"].as_str(), line["status"].as_u64()),
            (Some(reason), Some(status))
        );
        let sample = format!("wsguard_server_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(stage.metric(&sample), 1.0);
    }
}

#[test]
fn rubbish_is_no_request() {
    let stage = Stage::start(|_| {});
    for rubbish in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03"[..], b"\0\0\0\0\r\n\r\n", b"GET"]
    {
        let stream = connect(stage.address);
        let local = stream.local_addr().unwrap();
        stream.try_clone().unwrap().write_all(rubbish).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        refused(stream, b"");
        assert_eq!(stage.logged("refused", local)["refused"], "not_http");
    }
}

#[test]
fn who_sends_no_more_is_answered_all_the_same() {
    let stage = Stage::start(|_| {});
    // Repeated until the end arrives together with the request.
    for _ in 0..50 {
        let mut stream = connect(stage.address);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = refused(stream, b"");
        assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    }
}

#[test]
fn connections_are_limited_and_places_become_free() {
    let stage = Stage::start(|config| {
        config.max_connections = 3;
        config.max_connections_per_source = 2;
    });
    let one = Client::connect(stage.address);
    let _two = Client::connect(stage.address);
    let request = format!("{REQUEST}\r\n");
    let answer = refused(connect(stage.address), request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("retry-after: "), "{answer}");
    let elsewhere = |last| connect_from(Ipv4Addr::new(127, 0, 0, last), stage.address, None);
    let _three = Client::request(elsewhere(2), "", &[]);
    let answer = refused(elsewhere(3), request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: "), "{answer}");
    let local = one.local;
    drop(one);
    stage.logged("close", local);
    Client::request(elsewhere(3), "", &[]);
}

#[test]
fn a_flood_of_headers_is_cut_off() {
    let stage = Stage::start(|_| {});
    let many = "X-Flood: 1\r\n".repeat(200);
    let answer = refused(connect(stage.address), format!("{REQUEST}{many}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let long = format!("X-Flood: {}\r\n", "1".repeat(100_000));
    let answer = refused(connect(stage.address), format!("{REQUEST}{long}\r\n").as_bytes());
    assert!(!answer.contains("101"), "{answer}");
    // Without an end.
    let mut stream = connect(stage.address);
    let endless = wait_for(Duration::from_secs(10), || stream.write_all(&[b'a'; 4096]).err());
    assert!(endless.is_some(), "it goes on reading");
}

#[test]
fn a_handshake_takes_no_longer_than_it_may() {
    let stage = Stage::start(|config| config.handshake_timeout = Duration::from_millis(300));
    let silent = connect(stage.address);
    let mut drop_by_drop = connect(stage.address);
    let local = drop_by_drop.local_addr().unwrap();
    let gone = wait_for(Duration::from_secs(5), || {
        std::thread::sleep(Duration::from_millis(20));
        drop_by_drop.write_all(b"G").err()
    });
    assert!(gone.is_some());
    for local in [local, silent.local_addr().unwrap()] {
        assert_eq!(stage.logged("refused", local)["refused"], "handshake_timeout");
    }
}

#[test]
fn handshakes_at_a_time_are_limited() {
    let stage = Stage::start(|config| config.max_handshakes = 2);
    let from = |last| connect_from([127, 0, 0, last].into(), stage.address, None);
    let mut idle = vec![from(1)];
    let dropped = |stream| refused(stream, format!("{REQUEST}\r\n").as_bytes()).is_empty();
    assert!(dropped(from(1)), "half of them are for others");
    idle.push(from(2));
    assert!(dropped(from(3)));
    assert_eq!(stage.metric("wsguard_server_refused_total{reason=\"handshakes_full\"}"), 2.0);
    drop(idle);
    let entered = wait_for(Duration::from_secs(5), || {
        let answer = refused(connect(stage.address), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        answer.starts_with("HTTP/1.1 426").then_some(())
    });
    assert!(entered.is_some());
}

#[test]
fn in_a_crowd_newcomers_wait_for_a_place() {
    let stage = Stage::start(|config| {
        config.max_handshakes = 2;
        config.handshake_wait = PATIENCE;
    });
    let from = |last| connect_from([127, 0, 0, last].into(), stage.address, None);
    // All are connected before any sends a request; the later ones are in the kernel's queue.
    let crowd: Vec<_> = (1..60).map(from).collect();
    let asks = crowd.into_iter().map(|stream| Client::request(stream, "", &[]));
    assert!(asks.map(|client| client.answer).all(|answer| answer.starts_with("HTTP/1.1 101")));
    assert_eq!(stage.metric("wsguard_server_refused_total{reason=\"handshakes_full\"}"), 0.0);
}

#[test]
fn who_it_is_shows_in_log_and_metrics() {
    let stage = Stage::start(|config| {
        config.access.user = Some("query:user".parse().unwrap());
        config.access.region = Some("header:x-region".parse().unwrap());
        config.access.user_required = true;
        config.access.origins = vec!["https://example.test".parse().unwrap()];
        config.max_connections_per_user = 1;
        config.proxies.networks = vec!["127.0.0.0/8".parse().unwrap()];
    });
    let request = |user: &str, fields: &str| {
        format!("{REQUEST}{fields}\r\n").replace("GET / ", &format!("GET /chat{user} "))
    };
    let answer = |request: String| refused(connect(stage.address), request.as_bytes());
    assert!(answer(request("", "")).starts_with("HTTP/1.1 401 "));
    let evil = answer(request("?user=u-1", "Origin: https://evil.test\r\n"));
    assert!(evil.starts_with("HTTP/1.1 403 "), "{evil}");
    for reason in ["no_user", "origin"] {
        let sample = format!("wsguard_server_refused_total{{reason=\"{reason}\"}}");
        let counted = wait_for(PATIENCE, || (stage.metric(&sample) == 1.0).then_some(()));
        assert!(counted.is_some(), "{reason}");
    }
    let mut stream = connect(stage.address);
    let local = stream.local_addr().unwrap();
    let fields = "X-Region: shanghai\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.7\r\n";
    stream.write_all(request("?user=u-1", fields).as_bytes()).unwrap();
    let line = stage.logged("open", local);
    assert_eq!(
        (line["user_id"].as_str(), line["region"].as_str(), line["client"].as_str()),
        (Some("u-1"), Some("shanghai"), Some("192.0.2.7"))
    );
    let live = || stage.metric("wsguard_server_connections{region=\"shanghai\",state=\"open\"}");
    assert_eq!(live(), 1.0);
    assert!(answer(request("?user=u-1", "")).starts_with("HTTP/1.1 429 "));
    drop(stream);
    assert_eq!(stage.logged("close", local)["user_id"], "u-1");
    assert!(wait_for(PATIENCE, || (live() == 0.0).then_some(())).is_some());
}

#[test]
fn a_trusted_proxy_says_whom_it_connects_for() {
    let stage = Stage::start(|config| {
        config.proxies.networks = vec!["127.0.0.1/32".parse().unwrap()];
        config.proxies.proxy_protocol = true;
        config.max_connections_per_source = 1;
    });
    let proxied = |client: &str| {
        let mut stream = connect(stage.address);
        write!(stream, "PROXY TCP4 {client} 127.0.0.1 4711 80\r\n").unwrap();
        stream
    };
    let first = Client::request(proxied("192.0.2.1"), "", &[]);
    assert_eq!(stage.logged("open", first.local)["client"], "192.0.2.1");
    // Limits are per client, not per proxy.
    let _second = Client::request(proxied("192.0.2.2"), "", &[]);
    let third = refused(proxied("192.0.2.1"), format!("{REQUEST}\r\n").as_bytes());
    assert!(third.starts_with("HTTP/1.1 429 "), "{third}");
    let bare = connect(stage.address);
    let local = bare.local_addr().unwrap();
    assert_eq!(refused(bare, format!("{REQUEST}\r\n").as_bytes()), "");
    assert_eq!(stage.logged("refused", local)["refused"], "proxy_header");
    // A peer that is no proxy needs no header.
    Client::request(connect_from(Ipv4Addr::new(127, 0, 0, 5), stage.address, None), "", &[]);
}
