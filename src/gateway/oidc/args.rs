//! The flags by which tokens of an OpenID Connect issuer are taken.

use clap::Args;

use super::OidcConfig;
use super::claims::{ClaimMapping, ClaimName, OperatorClaim, TokenOrganization};
use super::issuer::IssuerId;

/// Callers known by tokens of an OpenID Connect issuer, beside those with API keys.
#[derive(Debug, Clone, Args)]
pub struct OidcArgs {
    /// An OpenID Connect issuer whose JWTs are taken as bearer tokens, beside API keys: its identifier, a URL to the letter.
    #[arg(long, env = "LASTWORD_OIDC_ISSUER", value_name = "URL", requires = "oidc_audience", requires = "of_whom")]
    pub oidc_issuer: Option<IssuerId>,
    /// The audiences that tokens may be for; a token for none of them is refused.
    #[arg(
        long,
        env = "LASTWORD_OIDC_AUDIENCE",
        value_name = "AUDIENCE",
        value_delimiter = ',',
        requires = "oidc_issuer"
    )]
    pub oidc_audience: Vec<String>,
    /// The organization of all who show a token.
    #[arg(long, env = "LASTWORD_OIDC_ORGANIZATION", value_name = "NAME", group = "of_whom", requires = "oidc_issuer")]
    pub oidc_organization: Option<String>,
    /// The claim that names the organization; within another claim by a JSON pointer, such as /tenant/name.
    #[arg(
        long,
        env = "LASTWORD_OIDC_ORGANIZATION_CLAIM",
        value_name = "CLAIM",
        group = "of_whom",
        requires = "oidc_issuer"
    )]
    pub oidc_organization_claim: Option<ClaimName>,
    /// The claim that names the user.
    #[arg(long, env = "LASTWORD_OIDC_USER_CLAIM", value_name = "CLAIM", default_value = "sub")]
    pub oidc_user_claim: ClaimName,
    /// What is put before a user's name, so that no token makes its holder the user of an API key; empty: they are the same.
    #[arg(long, env = "LASTWORD_OIDC_USER_PREFIX", value_name = "PREFIX", default_value = "oidc:")]
    pub oidc_user_prefix: String,
    /// The claim that makes an operator, and what it must be or have, such as groups=lastword-operators. Without it, tokens
    /// make users only.
    #[arg(long, env = "LASTWORD_OIDC_OPERATOR_CLAIM", value_name = "CLAIM=VALUE", requires = "oidc_issuer")]
    pub oidc_operator_claim: Option<OperatorClaim>,
}

impl OidcArgs {
    /// The configuration; `None` without an issuer.
    pub fn config(&self) -> Option<OidcConfig> {
        let organization = match (&self.oidc_organization, &self.oidc_organization_claim) {
            (Some(name), _) => TokenOrganization::Fixed(name.clone()),
            (None, Some(claim)) => TokenOrganization::Claim(claim.clone()),
            // The flags' group has refused this.
            (None, None) => return None,
        };
        Some(OidcConfig {
            issuer: self.oidc_issuer.clone()?,
            audiences: self.oidc_audience.clone(),
            claims: ClaimMapping {
                user: self.oidc_user_claim.clone(),
                user_prefix: self.oidc_user_prefix.clone(),
                organization,
                operator: self.oidc_operator_claim.clone(),
            },
        })
    }
}
