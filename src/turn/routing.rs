//! Where a turn came from and where its terminal is shown.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::turn::objects::objects_only;

/// The default platform: the terminal is shown to clients of the gateway's API.
pub const API: &str = "api";
/// The platform of AgentTurns: the terminal is shown in the object's status. Only the controller arms such turns.
pub const KUBERNETES: &str = "kubernetes";

/// A turn's routing, as the column `turn.routing` holds it. Absent fields have defaults, so that what an older version
/// wrote can be read: `platform` is `api`, `team` is the platform's name, `channel` is empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(remote = "Self")]
pub struct Routing {
    pub platform: String,
    pub team: String,
    pub channel: String,
    /// What the client wants back with the terminal, such as a thread's id. Lastword passes it on and never reads it.
    pub platform_metadata: Value,
}

/// A routing as it is stored: what is absent has a default.
#[derive(Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase")]
struct StoredRouting {
    platform: Option<String>,
    team: Option<String>,
    channel: Option<String>,
    #[serde(default)]
    platform_metadata: Value,
}

/// Why a turn's routing cannot be read. Such a turn ends with an `Internal` error, which is shown on [`API`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("routing is unreadable: {0}")]
pub struct Unreadable(pub String);

impl Default for Routing {
    fn default() -> Self {
        Routing { platform: API.into(), team: API.into(), channel: String::new(), platform_metadata: Value::Null }
    }
}

impl Routing {
    /// The routing to a platform, with defaults for the rest.
    pub fn on(platform: &str, platform_metadata: Value) -> Self {
        Routing { platform: platform.into(), team: platform.into(), channel: String::new(), platform_metadata }
    }

    /// Reads the database's column; `None` stands for a turn whose row is gone.
    pub fn read(stored: Option<&Value>) -> Result<Self, Unreadable> {
        let stored = stored.ok_or_else(|| Unreadable("the turn's row is missing".into()))?;
        let stored = <StoredRouting as Deserialize>::deserialize(stored).map_err(|e| Unreadable(e.to_string()))?;
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

objects_only!(both Routing);
objects_only!(read StoredRouting);

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
