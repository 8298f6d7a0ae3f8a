//! Page at `/` of the metrics port: the guard's current state in a browser.
//!
//! It is read-only. The port has no login: addresses of clients and names of users are shown only
//! with `--page-addresses`. All content is from this process; nothing from the network is ever
//! markup.

mod assets;
mod history;
mod live;
mod names;
mod picture;

use axum::{
    Router,
    body::Body,
    extract::State as Shared,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use self::{live::Live, names::Names};
use crate::state::State;

/// Page that has not been started yet.
/// `companion` answers for the companion server, if there is one, as the control API does.
pub struct Page {
    state: State,
    live: Live,
    names: Names,
    companion: Option<Router>,
}

impl Page {
    pub fn new(state: State, addresses: bool, companion: Option<Router>) -> Page {
        Page { state, live: Live::default(), names: Names::new(addresses), companion }
    }

    /// Return the page's routes.
    pub fn router(&self) -> Router {
        let live = Router::new().route("/page/live", get(stream)).with_state(self.live.clone());
        assets::router().merge(live)
    }

    /// Follow the guard until dropped.
    pub async fn run(self) {
        self.live.run(&self.state, &self.names, self.companion.as_ref()).await;
    }
}

/// Send server-sent events: first the last minutes, then one picture a second.
async fn stream(Shared(live): Shared<Live>) -> Response {
    let Some(frames) = live.frames() else {
        let retry = (header::RETRY_AFTER, HeaderValue::from_static("10"));
        let why = format!("{} are watching already: try again later\n", live::VIEWERS);
        return (StatusCode::SERVICE_UNAVAILABLE, [retry], why).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, Body::from_stream(frames)).into_response()
}
