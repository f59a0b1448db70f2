//! What tells that a value is unchanged.

/// What tells that a value is unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Validators {
    /// The answer's `ETag`.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The answer's `Last-Modified`.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
    /// What the value was made from, hashed. For AI the model, messages and settings: the same again need not be generated
    /// again. For HTTP the request, the inputs and the job file: the other two hold only together with it.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}
