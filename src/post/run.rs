//! The loop that takes due posts and makes attempts at them, many at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::attempt::Poster;
use crate::egress::Outbound;
use crate::every::Outage;
use crate::secrets::Secrets;
use crate::store::{PostPlace, Store};
use crate::turn::keys::GatewayId;

/// The pause between two looks for due rows.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For so many seconds no other renderer takes a row that this one took: longer than an attempt and the writing of its
/// outcome.
const CLAIM_SECONDS: u32 = 60;
/// The most posts under way at once.
const MAX_AT_ONCE: usize = 64;
/// The most rows of one look.
const MAX_ROWS: usize = 16;
/// No more rows are taken of one platform of one organization that has so many posts under way, so that a receiver that hangs
/// leaves room for the others. The rows of one look may exceed it.
const MAX_PER_PLACE: usize = 16;
/// The same for one organization with all its platforms.
const MAX_PER_ORGANIZATION: usize = 24;
/// After the shutdown, posts under way have this long.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Posts due rows until `shutdown`. Posts that are under way then have a few seconds; those that do not end in time are
/// posted again, by whoever takes their rows next.
pub async fn run(store: Store, secrets: Arc<dyn Secrets>, outbound: Outbound, shutdown: CancellationToken) {
    let by = GatewayId::new();
    let poster = Poster { store, secrets, outbound };
    let mut posts = JoinSet::new();
    let mut busy: HashMap<PostPlace, usize> = HashMap::new();
    let mut outage = Outage::new("posting to webhooks and Slack");
    loop {
        let room = MAX_ROWS.min(MAX_AT_ONCE.saturating_sub(posts.len()));
        // Whether more rows may be due than there was room for: then the end of a post is followed by a look at once.
        let mut backlog = room == 0;
        match poster.store.take_posts(by, CLAIM_SECONDS, room as u32, &full(&busy)).await {
            Ok(due) => {
                outage.is_over();
                backlog |= due.len() == room;
                for post in due {
                    let place = post.place();
                    *busy.entry(place.clone()).or_default() += 1;
                    let poster = poster.clone();
                    posts.spawn(async move {
                        poster.post(post).await;
                        place
                    });
                }
            }
            Err(error) => outage.goes_on(&error),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(ended) = posts.join_next(), if backlog => forget(&mut busy, ended),
            () = shutdown.cancelled() => break,
        }
        while let Some(ended) = posts.try_join_next() {
            forget(&mut busy, ended);
        }
    }
    let _ = tokio::time::timeout(STOP_WITHIN, async { while posts.join_next().await.is_some() {} }).await;
}

/// The platforms and the organizations that have enough posts under way.
fn full(busy: &HashMap<PostPlace, usize>) -> Vec<PostPlace> {
    let mut organizations: HashMap<&str, usize> = HashMap::new();
    for (place, posts) in busy {
        *organizations.entry(&place.organization).or_default() += posts;
    }
    let organizations = organizations.into_iter().filter(|(_, posts)| *posts >= MAX_PER_ORGANIZATION);
    let organizations = organizations.map(|(name, _)| PostPlace { organization: name.to_owned(), platform: None });
    let places = busy.iter().filter(|(_, posts)| **posts >= MAX_PER_PLACE).map(|(place, _)| place.clone());
    places.chain(organizations).collect()
}

/// Counts a post as ended.
fn forget(busy: &mut HashMap<PostPlace, usize>, ended: Result<PostPlace, JoinError>) {
    match ended {
        Ok(place) => {
            if let Some(count) = busy.get_mut(&place) {
                *count -= 1;
                if *count == 0 {
                    busy.remove(&place);
                }
            }
        }
        // The task panicked, and whose post it was is not known any more: nothing counts as under way. The row's claim runs
        // out, and it is tried again a bounded number of times.
        Err(_) => busy.clear(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_organization_leaves_room_for_the_others() {
        let place = |organization: &str, platform: Option<&str>| PostPlace {
            organization: organization.into(),
            platform: platform.map(Into::into),
        };
        let busy = |counts: &[(&str, &str, usize)]| {
            let counts = counts.iter().map(|(o, p, n)| (place(o, Some(p)), *n));
            full(&counts.collect())
        };
        assert_eq!(busy(&[("a", "x", 15), ("a", "y", 8)]), []);
        assert_eq!(busy(&[("a", "x", 16), ("b", "x", 7)]), [place("a", Some("x"))]);
        assert_eq!(busy(&[("a", "x", 12), ("a", "y", 12), ("b", "x", 12)]), [place("a", None)]);
    }
}
