//! Prometheus metrics, read from the kernel's maps at each scrape. No label is a client's address:
//! a flood from many sources must not become a flood of time series. Servers' are bounded.

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
