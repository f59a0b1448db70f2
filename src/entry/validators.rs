//! The validators that show whether a value is unchanged.

/// The validators that show whether a value is unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Validators {
    /// The answer's `ETag`.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The answer's `Last-Modified`.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
    /// A hash of what the value was made from. For AI: the model, messages and settings; while it is the same, nothing
    /// is generated. For HTTP: the request, the inputs and the job file; `etag` and `last_modified` are valid only
    /// together with it. Of an entry that the upstream does not have: the job's digest of its requests.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}
