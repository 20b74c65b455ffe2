//! Parses, loads the configuration, wires adapters into shells, runs. Nothing else.

fn main() {}
