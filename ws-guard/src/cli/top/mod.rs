//! `ws-guard top`: the current state, and changes by key.
//!
//! [`feed`] reads the guard, [`sample`] computes rates from two readings, [`model`] holds what is
//! shown, [`input`] handles keys, and [`draw`] draws the model on the [`screen`].

mod act;
mod clients;
mod columns;
mod details;
mod draw;
#[cfg(test)]
mod drawing;
mod feed;
mod input;
mod model;
mod once;
mod sample;
mod screen;
#[cfg(test)]
mod testing;
mod theme;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use crossterm::event::{Event, EventStream};
use futures_util::StreamExt;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
};

use self::{
    feed::Update,
    input::Command,
    model::{Model, Sort},
    sample::{Rates, Sample},
    screen::Screen,
    theme::Theme,
};
use super::{
    Global,
    backend::daemon,
    output::{Format, print},
    throttle::duration,
};
use crate::{api::events::EventQuery, domain::event::EventView};

/// Events that `--once` prints.
const LATEST: usize = 20;

const HELP: &str = "\
Keys: arrows select, Enter shows one client alone, s and S change the order, o turns it around,
/ filters by address, network or state, p pauses, t throttles for 15 minutes, r releases, a allows
(each asks first), ? lists all keys, q and Ctrl-C quit. Without a daemon the pins are read, and
nothing can be changed. NO_COLOR=1 does without colours.

Examples:
  ws-guard top                                   watch
  ws-guard top --sort connections --filter 10.0.0.0/8
  ws-guard top --once -o json | jq '.rows[0]'    the client that pings most, for a script

Exit codes: 0 done, also by SIGTERM; 1 no terminal; 69 nothing is loaded.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Top {
    /// Time between two readings, such as 500ms or 5s
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    interval: Duration,
    /// Order of the clients
    #[arg(long, value_enum, default_value_t, value_name = "ORDER")]
    sort: Sort,
    /// Only clients whose address has this text, is in this network, or is in this state
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    filter: String,
    /// Print what two readings say, and end
    #[arg(long)]
    once: bool,
    /// Form of that
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", requires = "once")]
    output: Format,
    /// Print at most this many clients
    #[arg(long, value_name = "N", requires = "once")]
    limit: Option<usize>,
}

impl Top {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        if self.once {
            return self.print_once(global).await;
        }
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            anyhow::bail!("this is no terminal: run it in one, or print once with --once");
        }
        let mut model = Model::new(self.sort, self.filter.clone());
        // An error at the start is printed on the ordinary terminal.
        model.take(Sample::take(global).await?);
        let (sender, updates) = mpsc::unbounded_channel();
        feed::read(global.clone(), self.interval, sender.clone());
        tokio::spawn(feed::follow(global.clone(), sender.clone()));
        show(&mut model, updates, &sender, global).await
    }

    async fn print_once(&self, global: &Global) -> anyhow::Result<()> {
        let before = Sample::take(global).await?;
        tokio::time::sleep(self.interval).await;
        let rates = Rates::between(Some(&before), Sample::take(global).await?);
        let limit = self.limit.unwrap_or(usize::MAX);
        print(&match self.output {
            Format::Json => {
                let events = match rates.status.pid {
                    Some(_) => latest_events(global).await?,
                    None => Vec::new(),
                };
                once::json(&rates, &events, self.sort, &self.filter, limit)?
            }
            format => once::text(&rates, self.sort, &self.filter, limit, format == Format::Wide),
        })
    }
}

async fn latest_events(global: &Global) -> anyhow::Result<Vec<EventView>> {
    let mut lines = daemon(global).await?.lines(&EventQuery::default().path()).await?;
    let mut events = Vec::new();
    while let Some(line) = lines.next().await? {
        events.push(serde_json::from_str(&line)?);
    }
    Ok(events.split_off(events.len().saturating_sub(LATEST)))
}

/// Draw after each update until the end.
async fn show(
    model: &mut Model,
    mut updates: UnboundedReceiver<Update>,
    sender: &UnboundedSender<Update>,
    global: &Global,
) -> anyhow::Result<()> {
    let theme = Theme::of_environment();
    let mut ends = Ends::new()?;
    let mut screen = Screen::enter().context("taking over the terminal")?;
    let mut keys = EventStream::new();
    loop {
        screen.draw(|frame| draw::draw(frame, model, theme))?;
        tokio::select! {
            () = ends.next() => return Ok(()),
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) => match input::press(model, key) {
                    Some(Command::Quit) => return Ok(()),
                    Some(Command::Do(request)) => {
                        let (global, sender) = (global.clone(), sender.clone());
                        tokio::spawn(async move {
                            let done = act::act(&global, request).await;
                            // The view may already be closed.
                            let _ = sender.send(Update::Done(done.map_err(|e| format!("{e:#}"))));
                        });
                    }
                    None => {}
                },
                // Redraw at the new size.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("reading keys"),
                // The terminal is gone.
                None => return Ok(()),
            },
            Some(update) = updates.recv() => {
                take(model, update)?;
                // Take all pending updates before drawing again.
                while let Ok(update) = updates.try_recv() {
                    take(model, update)?;
                }
            }
        }
    }
}

fn take(model: &mut Model, update: Update) -> anyhow::Result<()> {
    match update {
        Update::Sample(sample) => model.take(*sample),
        Update::Failed(why) => model.fail(why),
        Update::Event(event) => model.take_event(*event),
        Update::OtherDaemon => model.forget_events(),
        Update::Done(Ok(what)) => model.say(what, false),
        Update::Done(Err(why)) => model.say(why, true),
        Update::Ended => anyhow::bail!("what reads the guard has ended: start the view again"),
    }
    Ok(())
}

/// Signals that end the view.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> io::Result<Ends> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        let [terminate, interrupt, hangup] = kinds.map(signal);
        Ok(Ends([terminate?, interrupt?, hangup?]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
