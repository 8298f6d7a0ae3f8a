//! Configurations for nginx.
use std::net::SocketAddr;

/// Return a configuration with these lines in its section `http`.
/// It has one process, so that none is left behind when it is killed.
pub fn http(lines: &str) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {name};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr notice;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n  access_log off;\n{temporary}{lines}}}\n"
    )
}

/// Configure a server that forwards WebSocket connections.
/// `real` is the source of the client's address, and `header` its form for the server.
fn handing_on(listen: &str, real: &str, server: SocketAddr, header: &str) -> String {
    format!(
        "  server {{
    listen {listen} backlog=4096;
    {real}
    location / {{
      proxy_pass http://{server};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header {header};
      proxy_read_timeout 1h;
    }}
  }}
"
    )
}

const APPEND: &str = "X-Forwarded-For $proxy_add_x_forwarded_for";

/// Configure appending of the client's address to `X-Forwarded-For`.
pub fn appending(at: SocketAddr, server: SocketAddr) -> String {
    http(&handing_on(&at.to_string(), "", server, APPEND))
}

/// Configure that with the client's address from the PROXY protocol.
pub fn behind_proxy_protocol(at: SocketAddr, server: SocketAddr) -> String {
    let real = "set_real_ip_from 0.0.0.0/0; set_real_ip_from ::/0; real_ip_header proxy_protocol;";
    http(&handing_on(&format!("{at} proxy_protocol"), real, server, APPEND))
}

/// Configure appending of the client's address to `Forwarded`.
pub fn forwarded(at: SocketAddr, server: SocketAddr) -> String {
    let maps = r#"  map $remote_addr $node {
    ~^[0-9.]+$ "for=$remote_addr";
    ~^[0-9A-Fa-f:.]+$ "for=\"[$remote_addr]\"";
    default "for=unknown";
  }
  map $http_forwarded $chain {
    "" $node;
    default "$http_forwarded, $node";
  }
"#;
    let server = handing_on(&at.to_string(), "", server, "Forwarded $chain");
    http(&format!("{maps}{server}"))
}
