//! nginx with Lua before servers of several clusters: the same hash on both sides.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    num::NonZeroU32,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use prometheus::Registry;
use tempfile::TempDir;
use ws_guard_server::{
    Config, Server,
    access_log::AccessLog,
    identity::Access,
    routing::{Share, cluster_of},
};
use ws_guard_testkit::tools;

const USERS: u32 = 100_000;
const PATIENCE: Duration = Duration::from_secs(15);

struct Nginx {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Nginx {
    /// With our Lua, and this in its `http`.
    fn start(http: &str) -> Nginx {
        let dir = tempfile::tempdir().unwrap();
        let [modules, path] = tools::lua_in_nginx();
        let port = free_port();
        let config = format!(
            "{modules}daemon off;\nmaster_process off;\nerror_log stderr error;\npid nginx.pid;\n\
             events {{}}\nhttp {{\naccess_log off;\nclient_body_temp_path body;\nproxy_temp_path proxy;\n\
             fastcgi_temp_path f;\nuwsgi_temp_path u;\nscgi_temp_path s;\n{path}{}}}\n",
            http.replace("PORT", &port.to_string()),
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let unpacked = tools::nginx();
        let program = if unpacked.exists() { unpacked } else { "/usr/sbin/nginx".into() };
        let prefix = dir.path().display().to_string();
        let child = std::process::Command::new(program)
            .args(["-p", &prefix, "-c", "nginx.conf", "-e", "stderr"])
            .stdout(Stdio::null())
            .spawn()
            .expect("nginx is there: `cargo xtask setup` unpacks it");
        let nginx = Nginx { child, port, _dir: dir };
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(start.elapsed() < PATIENCE, "nginx does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        nginx
    }

    /// The answer to a request, up to the end of the stream or, without one, of what comes in time.
    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
            }
            if answer.starts_with(b"HTTP/1.1 101") && answer.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        String::from_utf8(answer).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Names as they come: numbers, addresses, other scripts, long ones.
fn name(number: u32) -> String {
    match number % 4 {
        0 => number.to_string(),
        1 => format!("user-{number}@example.com"),
        2 => format!("пользователь {number}"),
        _ => format!("{number:0200}"),
    }
}

#[test]
fn nginx_and_the_servers_agree_on_a_hundred_thousand_users() {
    let nginx = Nginx::start(
        "client_max_body_size 64m;\nclient_body_buffer_size 64m;\n\
         server {\nlisten 127.0.0.1:PORT;\nlocation / {\ncontent_by_lua_block {\n\
         local jump = require \"jump\"\nlocal of = tonumber(ngx.var.arg_of)\nngx.req.read_body()\n\
         local out = {}\nfor user in ngx.req.get_body_data():gmatch(\"[^\\n]+\") do\n\
         out[#out + 1] = jump.cluster_of(user, of)\nend\nngx.print(table.concat(out, \" \"))\n}\n}\n}\n",
    );
    let names: Vec<String> = (0..USERS).map(name).collect();
    let body = names.join("\n");
    for of in [1, 16, 17, 1000] {
        let request =
            format!("POST /?of={of} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = nginx.ask(&request);
        let (_, numbers) = answer.split_once("\r\n\r\n").expect("an answer");
        let theirs: Vec<u32> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        let of = NonZeroU32::new(of).unwrap();
        let ours: Vec<u32> = names.iter().map(|name| cluster_of(name, of)).collect();
        assert!(ours == theirs, "they differ over {of} clusters");
    }
}

/// The configuration that is shipped, with its ports and addresses changed, and two servers.
#[test]
fn users_are_sent_to_their_cluster_and_servers_refuse_those_of_others() {
    let of = NonZeroU32::new(16).unwrap();
    let start = |cluster| {
        let mut config = Config::new((Ipv4Addr::LOCALHOST, 0).into());
        config.shards = 1;
        // The machine that tests run on may be a busy one.
        config.stalls.refuse = Duration::from_secs(3600);
        config.stalls.shed = Duration::from_secs(3600);
        config.user_cluster = Some(Share { cluster, of });
        config.access = Access { user: Some("query:user".parse().unwrap()), ..Access::default() };
        Server::start(config, AccessLog::none(), &Registry::new()).unwrap()
    };
    let servers: Vec<Server> = (0..16).map(start).collect();
    let shipped = fs::read_to_string(tools::workspace().join("deploy/nginx/nginx.conf")).unwrap();
    let (_, http) = shipped.split_once("http {").unwrap();
    let http = http.trim_end().strip_suffix('}').unwrap();
    let lines = http.lines().filter(|line| !line.contains("lua_package_path")).map(|line| {
        if let Some((begin, _)) = line.split_once(" { server 10.") {
            let cluster: usize = begin.rsplit('_').next().unwrap().parse().unwrap();
            return format!("{begin} {{ server {}; }}\n", servers[cluster].address());
        }
        format!("{}\n", line.replace("listen 80;", "listen 127.0.0.1:PORT;"))
    });
    let nginx = Nginx::start(&lines.collect::<String>());
    let request = |query: &str, host: &str| {
        format!(
            "GET /?{query} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
    };
    for user in 0..64 {
        let answer = nginx.ask(&request(&format!("user=u-{user}"), "edge"));
        assert!(answer.starts_with("HTTP/1.1 101"), "{user}: {answer}");
    }
    // Encoded, and said twice: both sides take the same one.
    for query in ["user=a%20b%C3%BC", "user=a+b%2Bc", "x=1&user=first&user=second"] {
        assert!(nginx.ask(&request(query, "edge")).starts_with("HTTP/1.1 101"), "{query}");
    }
    let other = (cluster_of("u-1", of) + 1) % 16;
    let mut stream = TcpStream::connect(servers[other as usize].address()).unwrap();
    stream.write_all(request("user=u-1", "x").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
}
