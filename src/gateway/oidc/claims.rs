//! Which principal a token's claims make: a plain function.

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::store::keys::{KeyRole, Principal};
use crate::turn::keys::{check_name, check_user};

/// A claim of a token: by its name, or within an object by a JSON pointer (RFC 6901), such as `/realm_access/roles`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimName(String);

/// A claim that makes its holder an operator: one that is this text, or a list that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorClaim {
    claim: ClaimName,
    value: String,
}

/// Where a token says which organization its holder belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenOrganization {
    /// It does not: all holders belong to this one.
    Fixed(String),
    /// In this claim.
    Claim(ClaimName),
}

/// How claims are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimMapping {
    pub user: ClaimName,
    /// What stands before a user's name, so that the issuer's users are others than those of API keys.
    pub user_prefix: String,
    pub organization: TokenOrganization,
    /// Without it, nobody is an operator by a token.
    pub operator: Option<OperatorClaim>,
}

impl FromStr for ClaimName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "/" => Err("name a claim, such as sub, or /realm_access/roles for one within another".into()),
            name => Ok(ClaimName(name.to_owned())),
        }
    }
}

impl FromStr for OperatorClaim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((claim, value)) if !value.is_empty() => {
                Ok(OperatorClaim { claim: claim.parse()?, value: value.to_owned() })
            }
            _ => Err("write CLAIM=VALUE, such as groups=lastword-operators".into()),
        }
    }
}

impl ClaimName {
    fn of<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let Some(path) = self.0.strip_prefix('/') else { return claims.get(&self.0) };
        let unescaped = |part: &str| part.replace("~1", "/").replace("~0", "~");
        let mut parts = path.split('/').map(unescaped);
        let first = claims.get(&parts.next()?)?;
        parts.try_fold(first, |value, part| value.as_object()?.get(&part))
    }

    fn text<'a>(&self, claims: &'a Map<String, Value>) -> Result<&'a str, String> {
        self.of(claims).and_then(Value::as_str).ok_or_else(|| format!("it has no text as its claim {}", self.0))
    }
}

impl ClaimMapping {
    /// Who holds a token with these claims.
    ///
    /// # Errors
    /// What the claims lack.
    pub(super) fn principal(&self, claims: &Map<String, Value>) -> Result<Principal, String> {
        let name = self.user.text(claims)?;
        // An address that nobody has confirmed may be anybody's.
        if self.user.0 == "email" && claims.get("email_verified").is_some_and(|verified| verified != &Value::Bool(true))
        {
            return Err("its email is not verified".into());
        }
        if name.is_empty() {
            return Err(format!("its claim {} is empty", self.user.0));
        }
        let user = format!("{}{name}", self.user_prefix);
        check_user(&user).map_err(|error| format!("its claim {} is no user here: {error}", self.user.0))?;
        let organization = match &self.organization {
            TokenOrganization::Fixed(name) => name,
            TokenOrganization::Claim(claim) => claim.text(claims)?,
        };
        check_name("organization", organization).map_err(|error| error.to_string())?;
        let is_operator = self.operator.as_ref().is_some_and(|operator| match operator.claim.of(claims) {
            Some(Value::String(value)) => *value == operator.value,
            Some(Value::Array(values)) => values.iter().any(|value| value.as_str() == Some(&operator.value)),
            _ => false,
        });
        let role = if is_operator { KeyRole::Operator } else { KeyRole::User };
        Ok(Principal { organization: organization.to_owned(), user, role })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapping(user: &str, organization: Option<&str>, operator: Option<&str>) -> ClaimMapping {
        ClaimMapping {
            user: user.parse().expect("a claim"),
            user_prefix: "oidc:".into(),
            organization: match organization {
                Some(claim) => TokenOrganization::Claim(claim.parse().expect("a claim")),
                None => TokenOrganization::Fixed("acme".into()),
            },
            operator: operator.map(|text| text.parse().expect("a claim and its value")),
        }
    }

    fn read(mapping: &ClaimMapping, claims: Value) -> Result<(String, String, KeyRole), String> {
        let principal = mapping.principal(claims.as_object().expect("an object"))?;
        Ok((principal.organization, principal.user, principal.role))
    }

    #[test]
    fn claims_make_a_principal_in_a_realm_of_its_own() {
        let plain = mapping("sub", None, Some("groups=ops"));
        let ada = |role| Ok(("acme".to_owned(), "oidc:ada".to_owned(), role));
        assert_eq!(read(&plain, json!({"sub": "ada"})), ada(KeyRole::User));
        for (groups, role) in [
            (json!(["a", "ops"]), KeyRole::Operator),
            (json!("ops"), KeyRole::Operator),
            (json!("ops2"), KeyRole::User),
            (json!("a ops"), KeyRole::User),
            (json!({"ops": true}), KeyRole::User),
            (json!([["ops"]]), KeyRole::User),
            (json!(null), KeyRole::User),
        ] {
            assert_eq!(read(&plain, json!({"sub": "ada", "groups": groups.clone()})), ada(role), "{groups}");
        }
        let nested = mapping("sub", Some("/tenant/name"), Some("/realm_access/roles=ops"));
        let claims = json!({"sub": "ada", "tenant": {"name": "acme"}, "realm_access": {"roles": ["ops"]}});
        assert_eq!(read(&nested, claims), ada(KeyRole::Operator));
        let odd = mapping("https://example.com/user", None, None);
        assert_eq!(read(&odd, json!({"https://example.com/user": "ada"})), ada(KeyRole::User));
    }

    #[test]
    fn what_names_nobody_is_refused() {
        let plain = mapping("sub", None, None);
        for wrong in
            [json!({}), json!({"sub": 7}), json!({"sub": ""}), json!({"sub": "a\nb"}), json!({"sub": "x".repeat(300)})]
        {
            assert!(read(&plain, wrong.clone()).is_err(), "{wrong}");
        }
        let no_prefix = ClaimMapping { user_prefix: String::new(), ..mapping("sub", None, None) };
        assert!(read(&no_prefix, json!({"sub": "kubernetes:ada"})).is_err(), "an AgentTurn's user is no caller");
        let email = mapping("email", None, None);
        assert!(read(&email, json!({"email": "a@example.com", "email_verified": false})).is_err());
        assert!(read(&email, json!({"email": "a@example.com", "email_verified": "true"})).is_err());
        assert!(read(&email, json!({"email": "a@example.com", "email_verified": true})).is_ok());
        let organization = mapping("sub", Some("org"), None);
        for wrong in [json!({"sub": "a"}), json!({"sub": "a", "org": ""}), json!({"sub": "a", "org": ["acme"]})] {
            assert!(read(&organization, wrong.clone()).is_err(), "{wrong}");
        }
    }
}
