//! What people see: tables at 100 columns, the same in markdown, and one HTML page.
//!
//! | module | for |
//! |---|---|
//! | [`table`] | one table, three ways to show it |
//! | [`tables`] | the tables of a verdict |
//! | [`html`] | the page: one file, no script, works offline |

pub mod html;
pub mod table;
pub mod tables;

pub use table::Table;
