//! Answers: whether a photo shows what a text says, its tags, and a search that returns only what matches.

mod find;
mod relevance;
mod tags;
