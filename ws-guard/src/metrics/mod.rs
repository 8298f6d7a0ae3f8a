//! Prometheus metrics, read from the kernel's maps at each scrape.
//! No label is a client's address, lest a flood become a flood of time series; servers are bounded.

mod catalogue;
mod collector;
mod families;
mod http;
mod openmetrics;
#[cfg(test)]
mod page;
mod servers;
mod top;

pub use http::{registry, router, router_alone, serve};
