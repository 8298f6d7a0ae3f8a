//! Files of the page, embedded in the binary.

use axum::{Router, routing::get};
use ws_guard_server::page_headers;

/// Content policy: only this origin, and no script or style within the markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Path, type and text of each file.
const FILES: [(&str, &str, &str); 7] = [
    ("/", HTML, include_str!("web/page.html")),
    ("/page/page.js", SCRIPT, include_str!("web/page.js")),
    ("/page/page.css", STYLE, include_str!("web/page.css")),
    ("/page/icon.svg", "image/svg+xml", include_str!("web/icon.svg")),
    ("/page/uplot.js", SCRIPT, include_str!("web/uplot/uPlot.iife.min.js")),
    ("/page/uplot.css", STYLE, include_str!("web/uplot/uPlot.min.css")),
    ("/page/uplot.txt", "text/plain; charset=utf-8", include_str!("web/uplot/LICENSE")),
];

pub fn router() -> Router {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { (page_headers::of(kind, POLICY), text) }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_from_elsewhere_and_no_markup_is_made_of_text() {
        for (path, kind, text) in FILES.iter().filter(|(path, ..)| !path.contains("uplot")) {
            let mut found = ["http://", "https://", "@import", "innerHTML", "outerHTML", "eval("]
                .into_iter()
                .filter(|outside| text.replace("http://www.w3.org/2000/svg", "").contains(outside));
            assert_eq!(found.next(), None, "{path}");
            assert!(*kind != HTML || !text.contains("<style") && !text.contains(" style="));
        }
        // All files that the page names exist.
        let named = FILES[0].2.split(['"', '\'']).filter(|part| part.starts_with("/page/"));
        let missing: Vec<&str> =
            named.filter(|name| !FILES.iter().any(|(path, ..)| path == name)).collect();
        assert_eq!(missing, [] as [&str; 0]);
    }
}
