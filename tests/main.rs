//! The tests of the crate and of its programs, a module for each thing that is tested. They are one crate, so that it
//! is compiled and linked once.
#![cfg(test)]

mod support;

mod admin;
mod agenda;
mod api_example;
mod audits;
mod bulk;
mod cache;
mod cache_outage;
mod cache_service;
mod cache_together;
mod check;
mod cluster;
mod codecs;
mod commands;
mod compose;
mod connection;
mod console;
mod consistency;
mod cron;
mod demo;
mod dependencies;
mod deploy;
mod explained;
mod faults;
mod feeds;
mod fleet;
mod freshness;
mod frozen;
mod gone_guard;
mod history;
mod hit_rates;
mod invalidation;
mod lag;
mod layout;
mod lost_ways;
mod popularity;
mod printed;
mod redis_server;
mod reload;
mod remaking;
mod retries;
mod rollout;
mod schedules;
mod script_calls;
mod sentinels;
mod shown;
mod smoke;
mod spending;
mod survival;
mod warming;
mod watch;
