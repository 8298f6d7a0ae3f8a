//! Parts of the daemon on a real kernel's maps: control API, metrics, reload.
//! No traffic: the effects of packets on the maps are tested end to end elsewhere.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use serde_json::{Value, json};
use tower::ServiceExt;
use ws_guard::{
    api::{companion, routes},
    config::{Inputs, Settings},
    domain::{event::EventView, status::PatternStatus},
    guard::{Attachment, BPFFS_MOUNT_POINT, Guard, LoadOptions, Mode, Role, TableSizes, unload},
    metrics,
    state::State,
};

/// A loaded guard with its own pin directory, removed at the end.
struct Loaded {
    state: State,
    pin_dir: PathBuf,
    _guard: Guard,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = unload(&self.pin_dir) {
            eprintln!("{error}");
        }
    }
}

/// Load the guard, or say why not.
fn load() -> Option<Loaded> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if let Some(reason) = ws_guard_testkit::skip_reason() {
        println!("skipped: {reason}");
        return None;
    }
    let unique = format!("wsg-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let pin_dir = Path::new(BPFFS_MOUNT_POINT).join(unique);
    let sizes = TableSizes { flows: 64, sources: 64, pending: 64, rules: 64, opening: 64 };
    let options = LoadOptions {
        pin_dir: pin_dir.clone(),
        sizes,
        tunnels: ws_guard_common::maps::Tunnels::default(),
        kernel_debug_log: false,
    };
    let guard = Guard::load(&options).expect("the guard loads");
    let settings = settings(&[]);
    let state = State::new(guard.maps(), pin_dir.clone(), settings.clone());
    state.operator.configure(&settings).expect("the policy is written");
    Some(Loaded { state, pin_dir, _guard: guard })
}

fn settings(more: &[(&str, &str)]) -> Settings {
    let flags =
        [("interface", "lo"), ("port", "9001"), ("allow", "10.1.0.0/16"), ("state-file", "none")];
    let all = flags.iter().chain(more);
    let arguments = all.map(|(name, value)| (name.to_string(), vec![value.to_string()])).collect();
    Inputs { arguments, ..Inputs::default() }.load().expect("valid settings")
}

async fn ask(router: &Router, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .expect("a request");
    let response = router.clone().oneshot(request).await.expect("an answer");
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_api_reads_and_changes_the_policy() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let (status, policy) = ask(&api, "GET", "/v1/policy", "").await;
    assert_eq!((status, &policy["max_ping_rate"]), (StatusCode::OK, &json!(30)));
    let patch = r#"{"max_ping_rate": 5, "window_seconds": 1, "ports": [80, 9001]}"#;
    let (status, policy) = ask(&api, "PATCH", "/v1/policy", patch).await;
    assert_eq!(status, StatusCode::OK, "{policy}");
    assert_eq!((&policy["max_ping_rate"], &policy["ports"]), (&json!(5), &json!([80, 9001])));
    assert_eq!(loaded.state.reader.maps.policy().expect("a policy").rate.limit, 5);
    let (_, status) = ask(&api, "GET", "/v1/status", "").await;
    assert_eq!(status["pid"], json!(std::process::id()));
    assert_eq!(status["policy"], policy);
    assert_eq!(
        status["config"]["overrides"],
        json!(["port: 9001 → 80,9001", "max-ping-rate: 30 → 5", "window-seconds: 10 → 1"])
    );
}

#[tokio::test]
async fn a_bad_patch_changes_nothing_and_names_every_error() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let patch = r#"{"max_ping_rate": 7, "window_seconds": 0, "actoin": "drop", "ports": []}"#;
    let (status, body) = ask(&api, "PATCH", "/v1/policy", patch).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let error = body["error"].as_str().expect("an error");
    for part in ["window_seconds: \"0\"", "did you mean action?", "ports: none left"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(body["remedy"].is_string());
    let (_, policy) = ask(&api, "GET", "/v1/policy", "").await;
    assert_eq!(policy["max_ping_rate"], json!(30));
}

#[tokio::test]
async fn every_error_is_json_with_a_remedy() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let huge = format!("{{\"source\": \"{}\"}}", "1".repeat(100_000));
    for (method, path, body, wanted) in [
        ("GET", "/v1/nothing", "", 404),
        ("DELETE", "/v1/policy", "", 405),
        ("POST", "/v1/throttle", "{", 400),
        ("POST", "/v1/throttle", "{\"source\": \"10.0.0.1\", \"x\": 1}", 422),
        ("POST", "/v1/throttle", "{\"source\": \"ten\"}", 400),
        ("POST", "/v1/throttle", "{\"source\": \"10.0.0.1\", \"seconds\": -1}", 400),
        ("POST", "/v1/throttle", "{\"source\": \"10.0.0.0/8\"}", 400),
        ("POST", "/v1/throttle", "{\"source\": \"10.1.0.1\"}", 409),
        ("POST", "/v1/throttle", &huge, 413),
        ("POST", "/v1/release", "{\"source\": \"10.9.9.9\"}", 404),
        ("POST", "/v1/allow", "{\"network\": \"fd77::1/128\"}", 400),
        ("DELETE", "/v1/allow", "{\"network\": \"10.9.0.0/16\"}", 404),
        ("PATCH", "/v1/policy", "[1]", 422),
        ("GET", "/v1/sources?state=angry", "", 400),
        ("GET", "/v1/events?since=x", "", 400),
        ("GET", "/v1/events?kind=throtled", "", 400),
        ("GET", "/v1/events?source=ten", "", 400),
        ("GET", "/v1/events?within_seconds=-1", "", 400),
    ] {
        let (status, answer) = ask(&api, method, path, body).await;
        assert_eq!(status.as_u16(), wanted, "{method} {path}: {answer}");
        let text = |field: &str| answer[field].as_str().is_some_and(|text| !text.is_empty());
        assert!(text("error") && text("remedy"), "{method} {path}: {answer}");
    }
}

#[tokio::test]
async fn the_allowlist_keeps_apart_what_operators_and_configuration_want() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let generation = || loaded.state.reader.maps.policy().expect("a policy").generation;
    let before = generation();
    let (status, list) = ask(&api, "POST", "/v1/allow", r#"{"network": "fd77::5"}"#).await;
    assert_eq!(status, StatusCode::OK);
    let configured = json!({"network": "10.1.0.0/16", "origin": "config"});
    let added = json!({"network": "fd77::/64", "origin": "runtime"});
    assert_eq!(list, json!([configured, added]));
    assert_ne!(generation(), before);
    // The configuration no longer names its network: it goes, the operator's stays.
    let mut empty = settings(&[]);
    empty.allow.clear();
    loaded.state.operator.configure(&empty).expect("configured");
    let (_, list) = ask(&api, "GET", "/v1/allow", "").await;
    assert_eq!(list, json!([added]));
    let (_, list) = ask(&api, "DELETE", "/v1/allow", r#"{"network": "fd77::/64"}"#).await;
    assert_eq!(list, json!([]));
    assert_eq!(loaded.state.reader.maps.policy().expect("a policy").rules, 0);
}

#[tokio::test]
async fn networks_and_ports_get_settings_of_their_own_and_lose_them() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let cidr = r#"{"cidr": "10.0.0.0/8", "max_ping_rate": 100}"#;
    let (status, policy) = ask(&api, "PATCH", "/v1/policy/cidr", cidr).await;
    assert_eq!(
        (status, &policy["cidrs"]),
        (StatusCode::OK, &json!([{"cidr": "10.0.0.0/8", "max_ping_rate": 100}]))
    );
    // Added to what it has, and next to an exemption of the same network.
    ask(&api, "POST", "/v1/allow", r#"{"network": "10.0.0.0/8"}"#).await;
    let more = r#"{"cidr": "10.0.0.0/8", "action": "drop"}"#;
    let (_, policy) = ask(&api, "PATCH", "/v1/policy/cidr", more).await;
    let whole = json!([{"cidr": "10.0.0.0/8", "action": "drop", "max_ping_rate": 100}]);
    assert_eq!(policy["cidrs"], whole);
    let port = r#"{"port": 9001, "window_seconds": 60}"#;
    let (_, policy) = ask(&api, "PATCH", "/v1/policy/port", port).await;
    assert_eq!(policy["port_policies"], json!([{"port": 9001, "window_seconds": 60}]));
    assert_eq!((&policy["ports"], &policy["window_seconds"]), (&json!([9001]), &json!(10)));
    // Another configuration removes none of it.
    loaded.state.operator.configure(&settings(&[])).expect("configured");
    let (_, policy) = ask(&api, "GET", "/v1/policy", "").await;
    assert_eq!(policy["cidrs"], whole);
    let (_, policy) = ask(&api, "DELETE", "/v1/policy/cidr", r#"{"cidr": "10.0.0.0/8"}"#).await;
    assert_eq!(policy["cidrs"], json!([]));
    let (_, allowed) = ask(&api, "GET", "/v1/allow", "").await;
    assert_eq!(allowed[0], json!({"network": "10.0.0.0/8", "origin": "runtime"}));
}

#[tokio::test]
async fn the_configurations_networks_come_back_behind_an_operators() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let configured = settings(&[("cidr", "10.0.0.0/8 max-ping-rate=50")]);
    loaded.state.operator.configure(&configured).expect("configured");
    loaded.state.config().settings = configured;
    let unset = r#"{"cidr": "10.0.0.0/8"}"#;
    let (status, _) = ask(&api, "DELETE", "/v1/policy/cidr", unset).await;
    assert_eq!(status, StatusCode::CONFLICT, "it is the configuration's");
    let set = r#"{"cidr": "10.0.0.0/8", "max_ping_rate": 5}"#;
    let (_, policy) = ask(&api, "PATCH", "/v1/policy/cidr", set).await;
    assert_eq!(policy["cidrs"][0]["max_ping_rate"], json!(5));
    let (_, policy) = ask(&api, "DELETE", "/v1/policy/cidr", unset).await;
    assert_eq!(policy["cidrs"][0]["max_ping_rate"], json!(50));
    loaded.state.operator.configure(&settings(&[])).expect("configured");
    let (_, policy) = ask(&api, "GET", "/v1/policy", "").await;
    assert_eq!(policy["cidrs"], json!([]));
}

#[tokio::test]
async fn reports_are_charged_one_by_one() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let batch = json!({"reports": [
        {"source": "10.0.0.1", "pings": 12},
        {"source": "10.0.0.1", "pings": 20, "port": 9001},
        {"source": "fd77::1", "pings": 30},
        {"source": "10.0.0.2", "pings": 0},
        {"source": "ten", "pings": 1},
        {"source": "10.0.0.3", "pings": 1, "port": 80},
        {"source": "10.0.0.3"},
        {"source": "10.1.0.1", "pings": 500},
    ]});
    let (status, answer) = ask(&api, "POST", "/v1/reports", &batch.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((&answer["accepted"], &answer["throttled"]), (&json!(4), &json!(["10.0.0.1"])));
    let errors = answer["errors"].as_array().expect("errors");
    let indices: Vec<_> = errors.iter().map(|error| error["index"].clone()).collect();
    assert_eq!(indices, [3, 4, 5, 6].map(|index| json!(index)));
    assert!(errors.iter().all(|error| error["remedy"].is_string()), "{answer}");
    let (_, sources) = ask(&api, "GET", "/v1/sources", "").await;
    let pings = |source: &str| {
        let rows = sources.as_array().expect("rows").iter();
        rows.filter(|row| row["source"] == source)
            .map(|row| row["pings_total"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!((pings("10.0.0.1"), pings("fd77::/64")), (vec![json!(32)], vec![json!(30)]));
    let many = json!({"reports": vec![json!({"source": "10.0.0.1", "pings": 1}); 1001]});
    let (status, answer) = ask(&api, "POST", "/v1/reports", &many.to_string()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
    assert!(answer["remedy"].as_str().is_some_and(|remedy| remedy.contains("1000")), "{answer}");
}

#[tokio::test]
async fn events_are_lines_after_a_number() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    for message in ["a", "b", "c"] {
        loaded.state.events.record(EventView::message("policy", message));
    }
    let request = Request::get("/v1/events?since=1").body(Body::empty()).expect("a request");
    let response = api.oneshot(request).await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let bytes = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    let lines: Vec<Value> = String::from_utf8_lossy(&bytes)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.iter().map(|line| &line["seq"]).collect::<Vec<_>>(), [&json!(2), &json!(3)]);
}

#[tokio::test]
async fn a_file_change_keeps_what_it_did_not_name() {
    let Some(loaded) = load() else { return };
    let state = &loaded.state;
    let patch = json!({"action": "observe", "max_ping_rate": 99});
    state.operator.patch(patch.as_object().expect("an object")).expect("patched");
    let (before, after) = (settings(&[]), settings(&[("max-ping-rate", "40")]));
    let merged = state.operator.merge(&before, &after).expect("merged");
    assert_eq!((merged.max_ping_rate, merged.action.name()), (40, "observe"));
    state.operator.configure(&after).expect("configured");
    assert_eq!(state.reader.policy().expect("a policy"), after.policy);
}

#[tokio::test]
async fn metrics_parse_and_name_no_address() {
    let Some(loaded) = load() else { return };
    let registry = metrics::registry(loaded.state.clone()).expect("a registry");
    let router = metrics::router(registry, Vec::new, loaded.state.clone(), || Ok(()));
    let get = |path: &str| Request::get(path).body(Body::empty()).expect("a request");
    let response = router.clone().oneshot(get("/metrics")).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let bytes = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    let scrape =
        prometheus_parse::Scrape::parse(text.lines().map(|l| Ok(l.to_string()))).expect("parses");
    let value = |name: &str| {
        let sample = scrape.samples.iter().find(|sample| sample.metric == name);
        format!("{:?}", sample.unwrap_or_else(|| panic!("no {name}")).value)
    };
    assert_eq!(value("wsguard_up"), "Gauge(1.0)");
    assert_eq!(value("wsguard_policy_max_ping_rate"), "Gauge(30.0)");
    assert_eq!(value("wsguard_pings_defused_total"), "Counter(0.0)");
    assert_eq!(value("wsguard_build_info"), "Gauge(1.0)");
    assert_eq!(value("wsguard_ready"), "Gauge(0.0)");
    assert_eq!(value("wsguard_config_valid"), "Gauge(1.0)");
    assert!(value("wsguard_heartbeat_seconds").starts_with("Histogram"));
    let labels = scrape.samples.iter().flat_map(|sample| sample.labels.keys());
    assert!(labels.clone().count() > 20);
    for label in labels {
        assert!(!["source", "client", "ip", "address"].contains(&label.as_str()));
    }
    // No server has separate figures yet: the totals of all others exist, without a name.
    let servers = scrape.samples.iter().filter_map(|sample| sample.labels.get("server"));
    assert!(servers.clone().count() > 30);
    assert!(servers.into_iter().all(|server| server == "other"));
    assert!(scrape.samples.iter().all(|sample| sample.metric.starts_with("wsguard_")));
    let open = Request::get("/metrics").header("accept", "application/openmetrics-text");
    let open = router.clone().oneshot(open.body(Body::empty()).expect("a request")).await;
    let open = open.expect("an answer");
    let kind = open.headers()["content-type"].to_str().expect("text");
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let bytes = to_bytes(open.into_body(), 1 << 20).await.expect("a body");
    let open = std::str::from_utf8(&bytes).expect("text");
    let names = |text: &str| -> std::collections::BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    assert_eq!(names(open), names(&text));
    assert!(open.ends_with("# EOF\n"));
    let health = router.clone().oneshot(get("/healthz")).await.expect("an answer");
    assert_eq!(health.status(), StatusCode::OK);
    let ready = router.oneshot(get("/readyz")).await.expect("an answer");
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE, "nothing is attached");
}

#[tokio::test]
async fn ready_is_attached_with_a_policy_in_force() {
    let Some(loaded) = load() else { return };
    let state = &loaded.state;
    let pattern = |role| PatternStatus { pattern: "eth*".into(), role, interfaces: 0 };
    let attached = |egress| Attachment {
        name: "eth0".into(),
        ingress: Some(Mode::Tcx),
        egress,
        ..Attachment::default()
    };
    let ready = |attachments: Vec<Attachment>, patterns: Vec<PatternStatus>| {
        state.set_attachments(attachments, patterns);
        state.ready()
    };
    assert_eq!(ready(vec![], vec![]), Err("nothing is attached yet".into()));
    assert_eq!(ready(vec![attached(None)], vec![]), Err("not attached: eth0".into()));
    assert_eq!(ready(vec![attached(Some(Mode::Tcx))], vec![]), Ok(()));
    // A node need not have pods, but without an uplink nothing is guarded.
    assert_eq!(ready(vec![], vec![pattern(Role::Pod)]), Ok(()));
    let none = Err("not attached: no interface matches eth*".into());
    assert_eq!(ready(vec![], vec![pattern(Role::Pod), pattern(Role::Uplink)]), none);
    let all = ready(vec![attached(Some(Mode::Tcx))], vec![pattern(Role::Uplink)]);
    assert_eq!(all, Ok(()));
}

/// Check that every documented path, and every path named in an error, is answered.
#[tokio::test]
async fn documented_paths_are_the_codes() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let (status, body) = ask(&api, "GET", "/v1/nothing", "").await;
    let remedy = body["remedy"].as_str().expect("a remedy").to_owned();
    assert!(status == StatusCode::NOT_FOUND && remedy.contains("policy/cidr"), "{body}");
    let listed = remedy.split("/v1/").nth(1).expect("paths").split(", ").map(str::to_owned);
    let cli = include_str!("../../docs/cli.md");
    let documented = cli.split("/v1/").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphabetic() && c != '/').unwrap_or(rest.len());
        rest[..end].trim_end_matches('/').to_owned()
    });
    for path in listed.chain(documented) {
        let path = format!("/v1/{}", path.replace("{id}", "7"));
        if path == "/v1/events" {
            continue;
        }
        let (_, body) = ask(&api, "OPTIONS", &path, "").await;
        let error = body["error"].as_str().unwrap_or_default();
        assert!(!error.contains("unknown path"), "{path}: {body}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_told_how_large_it_may_be() {
    let Some(loaded) = load() else { return };
    let api = routes::router(loaded.state.clone(), companion::absent());
    let large = format!("{{\"topic\":\"a\",\"data\":\"{}\"}}", "x".repeat(65 << 10));
    let (status, body) = ask(&api, "POST", "/v1/publish", &large).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let (error, remedy) = (body["error"].to_string(), body["remedy"].to_string());
    assert!(error.contains("too large") && remedy.contains("at most 64 KiB"), "{body}");
}
