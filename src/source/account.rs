//! Refusals of an account: a spent quota, a payment that is due. Waiting does not mend them; a person must act.
//!
//! 402 says so by itself. With 400, 401, 403 and 429, which mean other things too, the error's code in a JSON body says
//! it, as OpenAI and the servers that speak its language give it. Prose counts only where it cannot mean a rate limit.

use serde_json::Value;

/// Codes of a spent account, in lower case and without separators.
const CODES: [&str; 22] = [
    "insufficientquota",
    "insufficientbalance",
    "insufficientcredit",
    "insufficientcredits",
    "insufficientfunds",
    "insufficientuserquota",
    "exceededcurrentquota",
    "exceededcurrentquotaerror",
    "quotaexceeded",
    "quotaexhausted",
    "dailylimitexceeded",
    "creditsexhausted",
    "outofcredit",
    "outofcredits",
    "paymentrequired",
    "billingerror",
    "billingnotactive",
    "billinglimitreached",
    "billinghardlimitreached",
    "accountdeactivated",
    "accountoverdue",
    "arrearage",
];
/// Fields that hold codes.
const FIELDS: [&str; 7] = ["code", "type", "status", "reason", "error", "error_code", "errorCode"];
/// Phrases in the message of a spent account.
const PHRASES: [&str; 4] =
    ["insufficient balance", "insufficient credit", "insufficient quota", "credit balance is too low"];

/// Returns whether a status and its body say that the account is refused.
pub(super) fn is_refused(status: u16, body: &[u8]) -> bool {
    match status {
        402 => true,
        400 | 401 | 403 | 429 => serde_json::from_slice(body).is_ok_and(|body| says_so(&body)),
        _ => false,
    }
}

/// JSON is nested no deeper than its parser allows.
fn says_so(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(says_so),
        Value::Object(fields) => fields.iter().any(|(name, value)| match value {
            Value::String(text) if FIELDS.contains(&name.as_str()) => is_code(text) || is_phrase(text),
            Value::String(text) => name == "message" && is_phrase(text),
            value => says_so(value),
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A code may be the end of a name (`Billing.InsufficientBalance`) or of a URL (RFC 9457).
fn is_code(text: &str) -> bool {
    let last = text.rsplit(['/', '#', '.', ':']).next().unwrap_or_default();
    let bare = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    [bare(text), bare(last)].iter().any(|code| CODES.contains(&code.as_str()))
}

fn is_phrase(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    PHRASES.iter().any(|phrase| text.contains(phrase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_accounts_are_told_from_rate_limits() {
        for (status, body) in [
            (402, ""),
            (402, "<html>"),
            (
                429,
                r#"{"error": {"message": "…", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}}"#,
            ),
            (429, r#"{"error": {"type": "exceeded_current_quota_error"}}"#),
            (429, r#"{"code": "InsufficientQuota"}"#),
            (429, r#"[{"error": "insufficient_quota"}]"#),
            (403, r#"{"error": {"errors": [{"domain": "usageLimits", "reason": "dailyLimitExceeded"}], "code": 403}}"#),
            (403, r#"{"code": "Billing.AccountOverdue", "message": "pay"}"#),
            (403, r#"{"type": "https://example.com/probs/out-of-credit", "title": "no"}"#),
            (401, r#"{"error": {"code": "billing_not_active"}}"#),
            (400, r#"{"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to …"}}"#),
            (429, r#"{"error": "Insufficient credits"}"#),
        ] {
            assert!(is_refused(status, body.as_bytes()), "{status} {body}");
        }
        for (status, body) in [
            (429, ""),
            (429, "insufficient_quota"),
            (429, r#"{"error": {"type": "requests", "code": "rate_limit_exceeded"}}"#),
            (
                429,
                r#"{"error": {"code": 429, "message": "You exceeded your current quota, please check your plan and billing details.", "status": "RESOURCE_EXHAUSTED"}}"#,
            ),
            (403, r#"{"error": {"errors": [{"reason": "rateLimitExceeded"}]}}"#),
            (403, r#"{"message": "insufficient_scope", "code": "forbidden"}"#),
            (400, r#"{"code": "invalid", "field": "insufficient_quota"}"#),
            (422, r#"{"code": "insufficient_funds"}"#),
            (500, r#"{"code": "insufficient_quota"}"#),
            (503, r#"{"error": "payment_required"}"#),
            (429, r#"{"error": {"code": "insufficient_quo"#),
        ] {
            assert!(!is_refused(status, body.as_bytes()), "{status} {body}");
        }
    }
}
