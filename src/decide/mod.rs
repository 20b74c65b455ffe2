//! Room of `decide`.
