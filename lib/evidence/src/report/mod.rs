//! What people see: tables at 100 columns, the same in markdown, and one HTML page.
//!
//! | module | for |
//! |---|---|
//! | [`table`] | one table, three ways to show it |
//! | [`runs`] | one line a run, and what their order says |
//! | [`tables`] | the tables of a verdict |
//! | [`html`] | the page: one file, no script, works offline |
//! | [`file`](mod@file) | writing it to where it was asked for |

pub mod file;
pub mod html;
pub mod runs;
pub mod table;
pub mod tables;

pub use table::Table;
