//! Roles of clients and their rights: a token, a session of the console, or no token at all on this machine.
//!
//! A session is signed with a key that is made from its role's own token. So all workers with the same tokens accept
//! it, a new token ends all sessions of its role, and the session of a viewer says nothing about the other token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

use crate::config::Secret;

/// The beginning of the name of a session's cookie.
const COOKIE: &str = "samovar_session";
/// The fewest characters of a token that is hard to guess.
pub(crate) const LEAST_TOKEN: usize = 16;
/// The time for which a session counts.
pub(crate) const SESSION: Duration = Duration::from_secs(12 * 3600);
/// The purpose of a signature. It changes with the form of what is signed.
const PURPOSE: &str = "samovar console session 1";
/// The purpose of the signature in a cookie's name.
const NAMING: &str = "samovar console cookie 1";

/// The settings of who may use HTTP, and for what.
#[derive(Debug, Default)]
pub struct Access {
    /// The token of those who may act.
    pub token: Option<Secret>,
    /// The token of those who may look.
    pub viewer_token: Option<Secret>,
    /// Viewers see values.
    pub viewer_values: bool,
    /// Nobody changes anything.
    pub read_only: bool,
    /// `true` if only this machine can connect.
    pub local: bool,
    /// Host names that need no token, besides those of this machine.
    pub hosts: Vec<String>,
}

/// The role of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It may look.
    Look,
    /// It may look and act.
    Act,
}

/// The way in which a client proved its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Its role's token, in `Authorization`. No web page can send it.
    Token,
    /// A session. A browser sends it by itself.
    Session,
    /// None is needed.
    None,
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// Its role; `None` for those who see what anybody may see.
    pub(crate) role: Option<Role>,
    pub(crate) proof: Proof,
}

/// The rights of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rights {
    /// It sees reasons, which quote upstreams' answers.
    pub(crate) reasons: bool,
    /// It sees values.
    pub(crate) values: bool,
    /// It may change things.
    pub(crate) act: bool,
}

impl Role {
    const ALL: [Self; 2] = [Self::Look, Self::Act];

    /// Returns its name in sessions and in the audit log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Look => "viewer",
            Self::Act => "owner",
        }
    }
}

impl Access {
    /// Returns the client that sent these headers. Without `SAMOVAR_TOKEN`, everybody on this machine may act if nobody
    /// else can connect.
    pub(crate) fn client(&self, headers: &HeaderMap) -> Client {
        if self.token.is_none() {
            return Client { role: self.local.then_some(Role::Act), proof: Proof::None };
        }
        if let Some(role) = self.bearer(headers) {
            return Client { role: Some(role), proof: Proof::Token };
        }
        match self.session(headers) {
            Some(role) => Client { role: Some(role), proof: Proof::Session },
            None => Client { role: None, proof: Proof::None },
        }
    }

    /// Returns `true` if a client must prove its role to see more than anybody may see.
    pub(crate) fn has_roles(&self) -> bool {
        self.token.is_some()
    }

    /// Returns the rights of a role; `None` is that of anybody.
    pub(crate) fn rights(&self, role: Option<Role>) -> Rights {
        Rights {
            reasons: role.is_some(),
            values: role == Some(Role::Act) || (role == Some(Role::Look) && self.viewer_values),
            act: role == Some(Role::Act) && !self.read_only,
        }
    }

    /// Returns the role whose token the header `Authorization` has.
    pub(crate) fn bearer(&self, headers: &HeaderMap) -> Option<Role> {
        let (scheme, shown) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
        if scheme.eq_ignore_ascii_case(b"bearer ") { self.role_of(shown) } else { None }
    }

    /// Returns the role whose token this is. Compares in constant time for a given length.
    pub(crate) fn role_of(&self, shown: &[u8]) -> Option<Role> {
        Role::ALL
            .into_iter()
            .find(|role| self.token_of(*role).is_some_and(|token| bool::from(shown.ct_eq(token.expose().as_bytes()))))
    }

    fn token_of(&self, role: Role) -> Option<&Secret> {
        match role {
            Role::Act => self.token.as_ref(),
            Role::Look => self.viewer_token.as_ref(),
        }
    }

    /// Returns the names of the settings whose tokens are short.
    pub(crate) fn short_tokens(&self) -> impl Iterator<Item = &'static str> {
        let tokens = [("SAMOVAR_TOKEN", &self.token), ("SAMOVAR_VIEWER_TOKEN", &self.viewer_token)];
        let is_short = |token: &Secret| token.expose().len() < LEAST_TOKEN;
        tokens.into_iter().filter(move |(_, token)| token.as_ref().is_some_and(is_short)).map(|(name, _)| name)
    }

    /// Returns the name of a session's cookie. A browser sends cookies to all ports of a host, so fleets with other
    /// tokens have other names.
    pub(crate) fn cookie(&self) -> String {
        let Some(token) = &self.token else { return COOKIE.to_owned() };
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes());
        let tag = hmac::sign(&key, NAMING.as_bytes());
        format!("{COOKIE}_{}", URL_SAFE_NO_PAD.encode(&tag.as_ref()[..6]))
    }

    /// Returns the text of a new session; `None` for a role without a token.
    pub(crate) fn open_session(&self, role: Role) -> Option<String> {
        self.sign(role, now() + SESSION.as_secs())
    }

    fn sign(&self, role: Role, ends: u64) -> Option<String> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.token_of(role)?.expose().as_bytes());
        let signature = hmac::sign(&key, signed(role, ends).as_bytes());
        Some(format!("{}.{ends}.{}", role.as_str(), URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Returns the role of the session in the cookies of a request.
    pub(crate) fn session(&self, headers: &HeaderMap) -> Option<Role> {
        let own = self.cookie();
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find_map(|(name, session)| if name == own { self.verify(session, now()) } else { None })
    }

    fn verify(&self, session: &str, now: u64) -> Option<Role> {
        let mut parts = session.splitn(3, '.');
        let (name, ends, signature) = (parts.next()?, parts.next()?, parts.next()?);
        let role = Role::ALL.into_iter().find(|role| role.as_str() == name)?;
        let ends: u64 = ends.parse().ok()?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.token_of(role)?.expose().as_bytes());
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&key, signed(role, ends).as_bytes(), &signature).ok()?;
        (now < ends).then_some(role)
    }
}

fn signed(role: Role, ends: u64) -> String {
    format!("{PURPOSE} {} {ends}", role.as_str())
}

/// Returns the seconds since the epoch of this machine's clock. The end of a session is no time of an entry.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: Option<&str>, viewer: Option<&str>) -> Access {
        let secret = |text: &str| crate::config::Secret::new(text);
        Access { token: token.map(secret), viewer_token: viewer.map(secret), ..Access::default() }
    }

    #[test]
    fn a_session_counts_until_it_ends_and_under_its_tokens() {
        let ours = access(Some("owner's"), Some("viewer's"));
        for role in Role::ALL {
            let session = ours.sign(role, 1_000).unwrap();
            assert_eq!(ours.verify(&session, 999), Some(role));
            assert_eq!(ours.verify(&session, 1_000), None);
            assert_eq!(access(Some("owner's"), Some("viewer's")).verify(&session, 0), Some(role), "of another worker");
            assert_eq!(access(Some("new"), Some("newer")).verify(&session, 0), None);
        }
    }

    #[test]
    fn a_session_is_not_made_from_another() {
        let ours = access(Some("owner's"), Some("viewer's"));
        let session = ours.sign(Role::Look, 1_000).unwrap();
        let forged = [
            session.replace("viewer.", "owner."),
            session.replace("1000", "2000"),
            format!("{session}x"),
            session[..session.len() - 2].to_owned(),
            "viewer.1000.".to_owned(),
            "viewer".to_owned(),
            String::new(),
        ];
        for session in &forged {
            assert_eq!(ours.verify(session, 0), None, "{session}");
        }
        // A viewer knows the own token, and where nobody else has one, can sign no session of an owner.
        let viewers = access(None, Some("viewer's"));
        assert_eq!((viewers.sign(Role::Act, 1_000), viewers.verify("owner.1000.eHg", 0)), (None, None));
    }

    #[test]
    fn fleets_with_other_tokens_have_other_cookies() {
        let name = |token: &str| access(Some(token), None).cookie();
        assert_eq!(name("one"), name("one"));
        assert_ne!(name("one"), name("another"));
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        assert!(name("one").chars().all(is_plain) && !name("one").contains("one"), "{}", name("one"));
    }

    #[test]
    fn a_token_of_few_characters_is_short() {
        let of = |token: &str, viewer: &str| access(Some(token), Some(viewer)).short_tokens().collect::<Vec<_>>();
        assert_eq!(of("0123456789abcdef", "0123456789abcde"), ["SAMOVAR_VIEWER_TOKEN"]);
    }

    #[test]
    fn rights_follow_the_role() {
        let rights = |access: &Access, role| {
            let Rights { reasons, values, act } = access.rights(role);
            [reasons, values, act]
        };
        let plain = Access::default();
        assert_eq!(rights(&plain, None), [false, false, false]);
        assert_eq!(rights(&plain, Some(Role::Look)), [true, false, false]);
        assert_eq!(rights(&plain, Some(Role::Act)), [true, true, true]);
        let open = Access { viewer_values: true, read_only: true, ..Access::default() };
        assert_eq!(rights(&open, None), [false, false, false]);
        assert_eq!(rights(&open, Some(Role::Look)), [true, true, false]);
        assert_eq!(rights(&open, Some(Role::Act)), [true, true, false]);
    }
}
