//! Room of `adapters`.
