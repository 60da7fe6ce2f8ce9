//! Log patterns, detectors, statistics, pool replay, gates: pure, never sees the engine
