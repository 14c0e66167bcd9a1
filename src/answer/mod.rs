//! Answers: the relevance of a text to a photo, tags, and a search that returns only matches.

mod find;
mod relevance;
mod tags;
