//! Outcomes as log lines and metrics.
