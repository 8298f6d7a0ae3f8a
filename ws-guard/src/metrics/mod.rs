//! Prometheus metrics, read from the kernel's maps at each scrape. No label is an address: a flood
//! from many sources must not become a flood of time series.

mod catalogue;
mod collector;
mod families;
mod http;

pub use http::{registry, router, router_alone, serve};
