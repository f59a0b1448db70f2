//! Every key and channel name that Samovar uses.

/// Builds key and channel names under one prefix.
#[derive(Clone, Debug)]
pub struct Keys {}
