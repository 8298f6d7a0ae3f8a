//! State of the view: clients, their order and the selected one.

use std::collections::{HashMap, HashSet, VecDeque};

use clap::ValueEnum;

use super::sample::{ClientKey, Rates, Row, Sample};
use crate::domain::{
    event::EventView,
    event_filter::{EventFilter, network},
};

/// Rates kept per client for its curve.
pub const HISTORY: usize = 120;
/// Number of events kept.
const EVENTS: usize = 1_000;

/// Sort order of the clients, highest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Pings a second
    #[default]
    Rate,
    /// Pings in the window
    Window,
    /// Open connections
    Connections,
    /// Pings defused a second
    Defused,
    /// Packets dropped a second
    Dropped,
    /// The slowest heartbeat
    Heartbeat,
    /// Pings in all
    Pings,
    /// The address, in its own order
    Source,
}

impl Sort {
    fn value(self, row: &Row) -> f64 {
        match self {
            Sort::Rate => row.pings_per_second,
            Sort::Window => row.view.pings_in_window.into(),
            Sort::Connections => row.view.connections.into(),
            Sort::Defused => row.defused_per_second,
            Sort::Dropped => row.dropped_per_second,
            Sort::Heartbeat => row.heartbeat_rtt_us.unwrap_or(0).into(),
            Sort::Pings => row.view.pings_total as f64,
            Sort::Source => 0.0,
        }
    }

    /// Return the next or previous order, as the options list them.
    pub fn step(self, forward: bool) -> Sort {
        let all = Sort::value_variants();
        let at = all.iter().position(|sort| *sort == self).unwrap_or(0);
        let step = if forward { 1 } else { all.len() - 1 };
        all[(at + step) % all.len()]
    }
}

/// Return the rows that match a filter, in order.
pub fn arranged(rows: &[Row], sort: Sort, reversed: bool, filter: &str) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).filter(|i| matches(&rows[*i], filter)).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&rows[*a], &rows[*b]);
        let ordering = sort.value(b).total_cmp(&sort.value(a));
        let ordering = ordering.then_with(|| a.key().cmp(&b.key()));
        if reversed { ordering.reverse() } else { ordering }
    });
    order
}

/// Match part of the source's text or of its state's name, or a network around it.
fn matches(row: &Row, filter: &str) -> bool {
    let filter = filter.trim();
    if filter.is_empty() || row.view.source.contains(filter) {
        return true;
    }
    let around = || {
        let sources = network(filter).into_iter().collect::<Vec<_>>();
        !sources.is_empty()
            && EventFilter { sources, ..EventFilter::default() }.covers(&row.view.source)
    };
    row.view.state.name().starts_with(filter) || around()
}

/// Readings, updated as they arrive.
#[derive(Clone, Debug, Default)]
pub struct Live {
    pub rates: Option<Rates>,
    pub events: VecDeque<EventView>,
    /// Pings a second, of the clients that sent any lately.
    history: HashMap<ClientKey, VecDeque<f64>>,
    /// Pings a second of all clients.
    pub overall: VecDeque<f64>,
    /// Error of the latest reading, if it failed.
    pub failed: Option<String>,
}

impl Live {
    fn take(&mut self, rates: Rates) {
        self.failed = None;
        if !rates.span.is_zero() {
            push(&mut self.overall, rates.verdicts.pings);
            let mut there = HashSet::new();
            for row in &rates.rows {
                let key = row.key();
                if row.pings_per_second > 0.0 {
                    push(self.history.entry(key.clone()).or_default(), row.pings_per_second);
                } else if let Some(known) = self.history.get_mut(&key) {
                    push(known, 0.0);
                }
                there.insert(key);
            }
            // Keep no memory for a million quiet clients.
            self.history
                .retain(|key, rates| there.contains(key) && rates.iter().any(|rate| *rate > 0.0));
        }
        self.rates = Some(rates);
    }

    /// Return a client's pings a second, the latest last.
    pub fn history(&self, key: &ClientKey) -> Vec<f64> {
        self.history.get(key).map(|rates| rates.iter().copied().collect()).unwrap_or_default()
    }

    /// Check whether the readings are from a daemon, which can make changes.
    pub fn has_daemon(&self) -> bool {
        self.rates.as_ref().is_some_and(|rates| rates.status.pid.is_some())
    }

    fn rows(&self) -> &[Row] {
        self.rates.as_ref().map_or(&[], |rates| &rates.rows)
    }
}

fn push(rates: &mut VecDeque<f64>, rate: f64) {
    if rates.len() == HISTORY {
        rates.pop_front();
    }
    rates.push_back(rate);
}

/// Change that a key requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Throttle,
    Release,
    Allow,
}

/// Requested change of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub action: Action,
    pub source: String,
}

/// Current meaning of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Prompt {
    #[default]
    None,
    /// The filter is being edited; its previous text.
    Filter(String),
    Confirm(Request),
    Help,
}

/// Result of the last key or request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub text: String,
    pub error: bool,
}

/// State of the view, independent of the terminal.
#[derive(Clone, Debug, Default)]
pub struct Model {
    live: Live,
    /// Readings shown while paused.
    frozen: Option<Box<Live>>,
    latest: Option<Sample>,
    pub sort: Sort,
    pub reversed: bool,
    pub filter: String,
    pub prompt: Prompt,
    /// Only the selected client is shown.
    pub details: bool,
    pub notice: Option<Notice>,
    order: Vec<usize>,
    /// Selected client; before a selection, the first one.
    selected: Option<ClientKey>,
    /// First visible row.
    pub top: usize,
}

impl Model {
    pub fn new(sort: Sort, filter: String) -> Model {
        Model { sort, filter, ..Model::default() }
    }

    /// Take a new reading.
    pub fn take(&mut self, sample: Sample) {
        self.live.take(Rates::between(self.latest.as_ref(), sample.clone()));
        self.latest = Some(sample);
        self.arrange();
    }

    pub fn take_event(&mut self, event: EventView) {
        if self.live.events.len() == EVENTS {
            self.live.events.pop_front();
        }
        self.live.events.push_back(event);
    }

    /// Forget the events: another daemon answers, with events of its own.
    pub fn forget_events(&mut self) {
        self.live.events.clear();
    }

    /// Note a failed reading; the previous one is kept.
    pub fn fail(&mut self, why: String) {
        self.live.failed = Some(why);
    }

    /// Return the readings to show.
    pub fn shown(&self) -> &Live {
        self.frozen.as_deref().unwrap_or(&self.live)
    }

    pub fn is_paused(&self) -> bool {
        self.frozen.is_some()
    }

    pub fn pause(&mut self) {
        self.frozen = match self.frozen {
            Some(_) => None,
            None => Some(Box::new(self.live.clone())),
        };
        self.arrange();
    }

    /// Update the order after a change of rows, order or filter.
    /// The selection follows its client, until that is gone.
    pub fn arrange(&mut self) {
        self.order = arranged(self.shown().rows(), self.sort, self.reversed, &self.filter);
        if self.position().is_none() {
            self.selected = None;
        }
    }

    /// Return the clients to show, in order.
    pub fn clients(&self) -> impl ExactSizeIterator<Item = &Row> {
        let rows = self.shown().rows();
        self.order.iter().map(move |i| &rows[*i])
    }

    /// Return the selected client's position among them.
    pub fn position(&self) -> Option<usize> {
        let Some(selected) = &self.selected else {
            return (!self.order.is_empty()).then_some(0);
        };
        let is = |row: &Row| row.view.source == selected.0 && row.view.port == selected.1;
        self.clients().position(is)
    }

    pub fn selected(&self) -> Option<&Row> {
        self.clients().nth(self.position()?)
    }

    /// Move the selection down by `rows`.
    pub fn move_by(&mut self, rows: isize) {
        let last = self.order.len().saturating_sub(1);
        let at = self.position().unwrap_or(0).saturating_add_signed(rows).min(last);
        self.selected = self.order.get(at).map(|i| self.shown().rows()[*i].key());
    }

    pub fn say(&mut self, text: impl Into<String>, error: bool) {
        self.notice = Some(Notice { text: text.into(), error });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{model, sample, source};
    use super::*;
    use crate::domain::source::{SourceState, SourceView};

    fn names(model: &Model) -> Vec<&str> {
        model.clients().map(|row| row.view.source.as_str()).collect()
    }

    fn pings(model: &Model) -> f64 {
        model.shown().rates.as_ref().unwrap().verdicts.pings
    }

    /// Take a reading one second later, with more pings of each client.
    fn second(model: &mut Model, pings: [u64; 3]) {
        let mut next = model.latest.clone().unwrap();
        next.at += Duration::from_secs(1);
        for (source, pings) in next.sources.iter_mut().zip(pings) {
            source.pings_total += pings;
        }
        model.take(next);
    }

    #[test]
    fn the_fastest_is_first_and_the_selection_stays_on_its_client() {
        let mut model = model();
        second(&mut model, [1, 5, 3]);
        assert_eq!(names(&model), ["10.77.0.2", "fd77::/64", "10.77.0.1"]);
        model.move_by(1);
        assert_eq!(model.selected().unwrap().view.source, "fd77::/64");
        second(&mut model, [9, 0, 30]);
        assert_eq!(names(&model), ["fd77::/64", "10.77.0.1", "10.77.0.2"]);
        assert_eq!((model.position(), model.selected().unwrap().pings_per_second), (Some(0), 30.0));
        model.move_by(99);
        assert_eq!(model.selected().unwrap().view.source, "10.77.0.2");
        model.move_by(isize::MIN);
        assert_eq!(model.position(), Some(0));
    }

    #[test]
    fn a_client_that_is_gone_hands_the_selection_to_the_first() {
        let mut model = model();
        model.move_by(2);
        model.take(sample(vec![source("10.77.0.1", 1)]));
        assert_eq!(model.selected().unwrap().view.source, "10.77.0.1");
        model.take(sample(vec![]));
        assert!(model.selected().is_none());
        model.move_by(1);
        assert!(model.selected().is_none());
    }

    #[test]
    fn every_order_has_a_neighbour_and_can_be_reversed() {
        let mut sort = Sort::default();
        for _ in Sort::value_variants() {
            assert_eq!(sort.step(true).step(false), sort);
            sort = sort.step(true);
        }
        assert_eq!(sort, Sort::default());
        let mut model = model();
        model.sort = Sort::Source;
        model.arrange();
        assert_eq!(names(&model), ["10.77.0.1", "10.77.0.2", "fd77::/64"]);
        model.reversed = true;
        model.arrange();
        assert_eq!(names(&model), ["fd77::/64", "10.77.0.2", "10.77.0.1"]);
    }

    #[test]
    fn a_filter_is_text_state_or_network() {
        let mut model = model();
        for (filter, wanted) in [
            ("77.0", &["10.77.0.1", "10.77.0.2"][..]),
            ("throt", &["10.77.0.2"]),
            ("10.0.0.0/8", &["10.77.0.1", "10.77.0.2"]),
            ("fd77::9", &["fd77::/64"]),
            (" ", &["10.77.0.1", "10.77.0.2", "fd77::/64"]),
            ("nothing", &[]),
        ] {
            model.sort = Sort::Source;
            model.filter = filter.into();
            model.arrange();
            assert_eq!(names(&model), wanted, "{filter}");
        }
    }

    #[test]
    fn paused_nothing_moves_and_afterwards_nothing_is_missing() {
        let mut model = model();
        model.pause();
        second(&mut model, [0, 0, 7]);
        model.take_event(EventView::message("policy", "x"));
        assert_eq!(pings(&model), 0.0);
        assert!(model.shown().events.is_empty());
        model.pause();
        assert_eq!(names(&model)[0], "fd77::/64");
        assert_eq!((pings(&model), model.shown().events.len()), (7.0, 1));
    }

    #[test]
    fn curves_are_kept_for_sources_that_send() {
        let mut model = model();
        second(&mut model, [0, 4, 0]);
        second(&mut model, [0, 0, 0]);
        let key = |source: &str| (source.to_owned(), None);
        assert_eq!(model.shown().history(&key("10.77.0.2")), [4.0, 0.0]);
        assert!(model.shown().history(&key("10.77.0.1")).is_empty());
        for _ in 0..HISTORY {
            second(&mut model, [0, 0, 0]);
        }
        assert!(model.shown().history(&key("10.77.0.2")).is_empty());
        assert_eq!(model.shown().overall.len(), HISTORY);
    }

    #[test]
    fn a_failed_reading_keeps_what_was_there() {
        let mut model = model();
        model.fail("no daemon".into());
        assert_eq!((names(&model).len(), model.shown().failed.is_some()), (3, true));
        model.take(sample(vec![SourceView { state: SourceState::Ok, ..source("10.77.0.9", 1) }]));
        assert!(model.shown().failed.is_none());
    }
}
