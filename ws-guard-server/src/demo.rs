//! Page to try out messaging, with the browser client.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response,
    header::{self, HeaderValue},
};

use super::page_headers;

/// Content security policy: this server, and the worker of the client's timers.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, type and text of each file.
const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("../../clients/typescript/demo/index.html")),
    (
        "/demo.css",
        "text/css; charset=utf-8",
        include_str!("../../clients/typescript/demo/demo.css"),
    ),
    ("/demo.js", SCRIPT, include_str!("../../clients/typescript/demo/demo.js")),
    (
        "/ws-guard-client.js",
        SCRIPT,
        include_str!("../../clients/typescript/dist/ws-guard-client.js"),
    ),
];

/// Answer a request for one of the page's files.
pub fn answer<B>(request: &Request<B>) -> Option<Response<Full<Bytes>>> {
    let path = request.uri().path();
    let (_, kind, text) = FILES.into_iter().find(|(name, ..)| *name == path)?;
    if request.method() != Method::GET {
        return None;
    }
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    let headers = response.headers_mut();
    headers.extend(page_headers::of(kind, POLICY));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, target: &str) -> Option<Response<Full<Bytes>>> {
        answer(&Request::builder().method(method).uri(target).body(()).unwrap())
    }

    #[test]
    fn the_page_and_all_that_it_names_are_there() {
        assert!(ask(Method::GET, "/?user=ada").is_some());
        let [(_, _, page), _, (_, _, script), _] = FILES;
        for (text, mark) in [(page, "href=\""), (page, "src=\""), (script, "from \"./")] {
            for named in text.split(mark).skip(1).filter_map(|rest| rest.split('"').next()) {
                let response = ask(Method::GET, &format!("/{named}")).expect(named);
                assert_eq!(response.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
            }
        }
        assert!(ask(Method::GET, "/other").is_none() && ask(Method::POST, "/").is_none());
    }

    #[test]
    fn no_markup_is_made_of_text_and_nothing_comes_from_elsewhere() {
        for (path, _, text) in FILES {
            for outside in ["http://", "https://", "@import", "innerHTML", "eval(", " style="] {
                assert!(!text.contains(outside), "{path}: {outside}");
            }
        }
    }
}
