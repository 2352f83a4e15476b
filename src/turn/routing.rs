//! Where a turn came from and where its terminal is shown.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The platform of turns that came in through the gateway.
pub const API: &str = "api";
/// The platform of AgentTurns: the controller's alone.
pub const KUBERNETES: &str = "kubernetes";

/// A turn's routing, as the `turn.routing` column holds it. Absent fields have defaults, so that what an older version
/// wrote is readable: `platform` is `api`, `team` is the platform, `channel` is empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    pub platform: String,
    pub team: String,
    pub channel: String,
    /// What the platform's renderer needs to find the place again; never interpreted.
    pub platform_metadata: Value,
}

/// The routing cannot be read: the turn ends with a fallback error, shown on [`API`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("routing is unreadable: {0}")]
pub struct Unreadable(pub String);

impl Default for Routing {
    fn default() -> Self {
        Routing { platform: API.into(), team: API.into(), channel: String::new(), platform_metadata: Value::Null }
    }
}

impl Routing {
    /// Routing on a platform, with the defaults for the rest.
    pub fn on(platform: &str, platform_metadata: Value) -> Self {
        Routing { platform: platform.into(), team: platform.into(), channel: String::new(), platform_metadata }
    }

    /// Reads what the database holds; `None` is a turn whose row is gone.
    pub fn read(stored: Option<&Value>) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Stored {
            platform: Option<String>,
            team: Option<String>,
            channel: Option<String>,
            #[serde(default)]
            platform_metadata: Value,
        }
        let stored = stored.ok_or_else(|| Unreadable("the turn's row is missing".into()))?;
        if !stored.is_object() {
            return Err(Unreadable("not an object".into()));
        }
        let stored = Stored::deserialize(stored).map_err(|e| Unreadable(e.to_string()))?;
        let platform = stored.platform.unwrap_or_else(|| API.into());
        if platform.is_empty() {
            return Err(Unreadable("platform is empty".into()));
        }
        Ok(Routing {
            team: stored.team.unwrap_or_else(|| platform.clone()),
            channel: stored.channel.unwrap_or_default(),
            platform_metadata: stored.platform_metadata,
            platform,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_absent_has_a_default() {
        assert_eq!(Routing::read(Some(&json!({}))), Ok(Routing::default()));
        let slack = Routing::read(Some(&json!({"platform": "slack", "channel": "C1"}))).expect("readable");
        assert_eq!((slack.team.as_str(), slack.channel.as_str()), ("slack", "C1"));
    }

    #[test]
    fn what_is_wrong_is_unreadable() {
        for bad in
            [json!("x"), json!(3), json!([]), json!({"platform": 7}), json!({"platform": ""}), json!({"team": {}})]
        {
            assert!(Routing::read(Some(&bad)).is_err(), "{bad}");
        }
        assert!(Routing::read(None).is_err());
    }

    #[test]
    fn it_reads_what_it_writes() {
        let routing = Routing::on("slack", json!({"thread": "1.2"}));
        let stored = serde_json::to_value(&routing).expect("serializable");
        assert_eq!(Routing::read(Some(&stored)), Ok(routing));
    }
}
