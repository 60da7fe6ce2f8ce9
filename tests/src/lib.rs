//! Whole pipelines, documentation commands and tidiness
