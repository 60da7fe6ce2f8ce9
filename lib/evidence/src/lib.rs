//! Everything that explains evidence: log patterns, adapters, detectors, statistics, pool replay, gates, reports.
//!
//! Pure: text and records in, records and pages out. It never sees the engine, CUDA, tokenizers or weights.
//!
//! | module | for |
//! |---|---|
//! | [`logs`] | text logs to typed records; one pattern table per engine |
//! | [`adapters`] | other people's result files to `completion` records |
//! | [`region`] | region-timing buffers: span and coverage |
//! | [`provenance`] | what differs between legs |
//! | [`stats`] | intervals, McNemar, CUSUM, change point, power |
//! | [`detect`] | a label for every output |
//! | [`pool`] | block-pool replay and static exposure |
//! | [`explain`] | which mechanism explains which labels |
//! | [`checks`] | the auditor's invariants: records in, findings out |
//! | [`gates`] | the judge's gates: evidence in, outcomes out |
//! | [`report`] | tables, markdown and the HTML page |

pub mod adapters;
pub mod checks;
pub mod detect;
pub mod explain;
pub mod gates;
pub mod logs;
pub mod pool;
pub mod provenance;
pub mod region;
pub mod report;
pub mod stats;
