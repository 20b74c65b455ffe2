//! Room of `cli`.
