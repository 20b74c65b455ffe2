//! Room of `lab`.
