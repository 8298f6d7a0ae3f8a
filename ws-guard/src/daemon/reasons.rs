//! Additions from the tables to the kernel's events: clients, reasons of throttles.

use std::time::{Duration, Instant};

use ws_guard_common::{
    flow::Flow,
    maps::{Address, Event, EventKind, SourceKey, identity},
};

use super::feed::PATIENCE;
use crate::state::State;
use crate::{
    domain::{
        address::{prefixes_of, source_text},
        clock::Clock,
        event::EventView,
        open::OpenFlows,
        source::SourceViews,
        why::Why,
    },
    guard::GuardError,
};

/// Cached answers from the tables; the longer a reading takes, the rarer it is.
#[derive(Default)]
pub struct Reasons {
    reading: Option<Reading>,
}

/// Recent reading of policies, rules and connections.
struct Reading {
    views: SourceViews,
    open: OpenFlows,
    ended: Instant,
    took: Duration,
}

impl Reasons {
    /// Complete an event with what the tables know about it.
    pub fn told(&mut self, state: &State, event: &Event, mut view: EventView) -> EventView {
        let flow = state.reader.maps.flow(&event.flow).ok().flatten();
        if let Some(flow) = &flow {
            view.identity = Some(identity::name(flow.account.client.identity).into());
        }
        if event.kind == EventKind::Throttled as u8 {
            view.why = self.why(state, &event.source, flow.as_ref());
        } else if event.source.address == Address::default()
            && let Some(flow) = &flow
            && let Ok(policy) = state.reader.maps.policy()
        {
            let prefixes = prefixes_of(&policy);
            view.source = Some(source_text(&prefixes, &flow.account.source));
        }
        view
    }

    /// Return the reason of a source's throttle; `None` if it has left the table.
    pub fn why(&mut self, state: &State, key: &SourceKey, flow: Option<&Flow>) -> Option<Why> {
        let told = self.try_why(state, key, flow);
        told.inspect_err(|error| tracing::warn!("cannot tell why a source is throttled: {error}"))
            .ok()
            .flatten()
    }

    fn try_why(
        &mut self,
        state: &State,
        key: &SourceKey,
        flow: Option<&Flow>,
    ) -> Result<Option<Why>, GuardError> {
        let Some(source) = state.reader.maps.source(key)? else { return Ok(None) };
        let reading = self.reading(state)?;
        reading.views.clock = Clock::now();
        Ok(Some(Why::new(&reading.views, key, &source, flow, reading.open.of(key))))
    }

    /// Return the cached reading if it is recent: successive throttles share one.
    fn reading(&mut self, state: &State) -> Result<&mut Reading, GuardError> {
        let recent = |known: &Reading| known.ended.elapsed() < known.took * PATIENCE;
        let reading = match self.reading.take().filter(recent) {
            Some(known) => known,
            None => Reading::new(state)?,
        };
        Ok(self.reading.insert(reading))
    }
}

impl Reading {
    fn new(state: &State) -> Result<Reading, GuardError> {
        let began = Instant::now();
        let views = state.reader.source_views()?;
        let open = state.reader.open_flows(|_| true)?;
        Ok(Reading { views, open, ended: Instant::now(), took: began.elapsed() })
    }
}
