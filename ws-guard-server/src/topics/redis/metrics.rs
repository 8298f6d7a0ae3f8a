//! What the bus counts.

use prometheus::{Histogram, IntCounter, IntGauge, Registry};

use crate::register::Register;

/// Counters of the bus between servers.
#[derive(Clone)]
pub struct BusMetrics {
    pub connected: IntGauge,
    pub connects: IntCounter,
    pub lag: Histogram,
    pub reloads: IntCounter,
    pub caught_up: IntCounter,
    pub missed: IntCounter,
    pub handed: IntCounter,
    pub redelivered: IntCounter,
    pub claimed: IntCounter,
    pub acknowledged: IntCounter,
    pub dead: IntCounter,
    pub trimmed: IntCounter,
    pub failed: IntCounter,
}

impl BusMetrics {
    /// Make the metrics, and register them.
    pub fn new(registry: &Registry) -> prometheus::Result<BusMetrics> {
        let register = Register::new(registry);
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
        Ok(BusMetrics {
            connected: register
                .gauge("wsguard_server_bus_connected", "Whether the bus is connected to Redis.")?,
            connects: register.counter(
                "wsguard_server_bus_connects_total",
                "Times that the bus was connected to Redis.",
            )?,
            lag: register.histogram(
                "wsguard_server_bus_lag_seconds",
                "From the storage of a publication to its arrival at this server, by the clock of Redis.",
                buckets,
            )?,
            reloads: register.counter(
                "wsguard_server_bus_loads_total",
                "Topics that were read from their beginning: for the first subscriber, after a connection was lost, and where entries were missing.",
            )?,
            caught_up: register.counter(
                "wsguard_server_bus_caught_up_total",
                "Publications stored while this server did not read a topic of its clients, and read once it did again.",
            )?,
            missed: register.counter(
                "wsguard_server_bus_missed_total",
                "Publications stored while this server did not read a topic of its clients, and gone when it did again.",
            )?,
            handed: register.counter(
                "wsguard_server_queue_delivered_total",
                "Deliveries of entries of queue topics.",
            )?,
            redelivered: register.counter(
                "wsguard_server_queue_redelivered_total",
                "Deliveries of entries that had been delivered before.",
            )?,
            claimed: register.counter(
                "wsguard_server_queue_claimed_total",
                "Entries taken over that a server, or a client, did not acknowledge.",
            )?,
            acknowledged: register.counter(
                "wsguard_server_queue_acknowledged_total",
                "Entries of queue topics that were acknowledged.",
            )?,
            dead: register.counter(
                "wsguard_server_queue_dead_letters_total",
                "Entries of queue topics that were delivered too often.",
            )?,
            trimmed: register.counter(
                "wsguard_server_queue_lost_total",
                "Entries of queue topics that were pending, and no longer in Redis.",
            )?,
            failed: register.counter(
                "wsguard_server_bus_failures_total",
                "Publications that Redis did not store, or did not say that it had.",
            )?,
        })
    }
}
