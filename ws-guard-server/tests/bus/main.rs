//! Servers that share topics over a real redis-server, and its failures.

mod failover;
mod faults;
mod queues;
mod redis;
mod sharing;
mod slots;
mod stage;
