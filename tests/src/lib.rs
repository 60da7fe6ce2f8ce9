//! Whole pipelines, documentation commands and tidiness; the museum of faults

pub mod museum;
