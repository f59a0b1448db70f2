//! What is wrong with job files: where, what, why, what to do.

/// One fault of one file.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What is wrong, with the value and the remedy.
    pub message: String,
}

/// All faults of all files.
#[derive(Debug, thiserror::Error)]
#[error("{} faults in job files", .0.len())]
pub struct Faults(pub Vec<Fault>);
