//! Checkpoints: sound ones open and say what they are, broken ones are refused by name.

mod broken_config;
mod broken_headers;
mod broken_tensors;
mod chat;
mod forms;
mod golden;
mod hostile;
mod hub;
mod packings;
mod published;
mod rendered;
mod special;
mod streams;
mod tiny;
mod trained;
mod values;
