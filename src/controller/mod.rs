//! Room of `controller`.
