//! Changes requested by keys.

use std::time::Duration;

use hyper::Method;

use super::model::{Action, Request};
use crate::{
    api::message::{Allow, Release},
    cli::{Global, backend::daemon},
    domain::origin::AllowView,
    operator::throttling::{Decision, Throttle},
};

/// Duration of a throttle by key.
const THROTTLE: Duration = Duration::from_secs(15 * 60);

/// Request a change from the daemon, and return its result.
pub async fn act(global: &Global, request: Request) -> anyhow::Result<String> {
    let client = daemon(global).await?;
    let source = request.source;
    Ok(match request.action {
        Action::Throttle => {
            let seconds = Some(THROTTLE.as_secs_f64());
            let wanted = Throttle { source, seconds, action: None, force: false };
            let done: Decision = client.send(Method::POST, "/v1/throttle", &wanted).await?;
            let until = done.throttled_until.map_or("it is released".into(), |t| t.to_string());
            format!("{} is throttled until {until}", done.source)
        }
        Action::Release => {
            let wanted = Release { source };
            let done: Decision = client.send(Method::POST, "/v1/release", &wanted).await?;
            format!("{} is free", done.source)
        }
        Action::Allow => {
            let wanted = Allow { network: source.clone() };
            let _: Vec<AllowView> = client.send(Method::POST, "/v1/allow", &wanted).await?;
            format!("{source} is allowed; `ws-guard allow {source} --remove` takes it back")
        }
    })
}
