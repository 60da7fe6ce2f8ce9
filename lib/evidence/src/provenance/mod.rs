//! What differs between legs, what was asked for and what took effect.
//!
//! A [`Leg`] gathers its knobs from everything that states them: the server's arguments and environment (requested),
//! its log (effective), verdicts and results (recorded). [`compare`] puts legs side by side and says when two of them
//! differ in more than one thing, when asking and effect disagree, and which coincidences need explaining.

mod compare;
mod effect;
mod leg;
mod names;

pub use compare::{Comparison, compare};
pub use leg::{Knob, Leg, Says, Sighting};
