//! Room of `operate`.
