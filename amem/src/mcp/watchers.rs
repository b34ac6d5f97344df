//! Who is told that something changed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amem_core::{Namespace, RecordId};
use rmcp::model::{ResourceUpdatedNotificationParam, SubscriptionFilter};
use rmcp::service::SubscriptionSink;
use rmcp::{Peer, RoleServer};

use super::resources;
use crate::http::{ApiError, Result};

/// Resources that one client watches at most.
pub(super) const MAX_URIS: usize = 1000;
/// How long a client that reads nothing is waited for with what it is told.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WatcherId(u64);

/// Clients that watch memories.
#[derive(Default)]
pub(super) struct Watchers {
    next: AtomicU64,
    watching: Mutex<HashMap<WatcherId, Watcher>>,
}

#[derive(Clone)]
struct Watcher {
    namespace: Namespace,
    /// Whether it is told of memories that come and go.
    list: bool,
    /// The resources of whose changes it is told.
    uris: HashSet<String>,
    client: Client,
}

#[derive(Clone)]
enum Client {
    /// One with a session, of protocol versions before 2026-07-28.
    Session(Peer<RoleServer>),
    /// One that listens by a request of its own.
    Listening(SubscriptionSink),
}

impl Watchers {
    fn watching(&self) -> MutexGuard<'_, HashMap<WatcherId, Watcher>> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new_id(&self) -> WatcherId {
        WatcherId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Tells a session of memories that come and go from now on.
    pub(super) fn watch_session(&self, id: WatcherId, namespace: Namespace, peer: Peer<RoleServer>) {
        let new = || Watcher { namespace, list: true, uris: HashSet::new(), client: Client::Session(peer) };
        self.watching().entry(id).or_insert_with(new);
    }

    /// Tells a session of changes of a resource from now on.
    ///
    /// # Errors
    /// 400 when it watches too many.
    pub(super) fn subscribe(
        &self,
        id: WatcherId,
        namespace: Namespace,
        peer: Peer<RoleServer>,
        uri: String,
    ) -> Result<()> {
        self.watch_session(id, namespace, peer);
        if let Some(watcher) = self.watching().get_mut(&id) {
            if watcher.uris.len() >= MAX_URIS && !watcher.uris.contains(&uri) {
                return Err(ApiError::bad_request(format!("at most {MAX_URIS} resources can be subscribed to")));
            }
            watcher.uris.insert(uri);
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&self, id: WatcherId, uri: &str) {
        if let Some(watcher) = self.watching().get_mut(&id) {
            watcher.uris.remove(uri);
        }
    }

    /// Tells a client that listens of what it asked for, until this is dropped.
    pub(super) fn listen(
        &self,
        namespace: Namespace,
        sink: SubscriptionSink,
        accepted: &SubscriptionFilter,
    ) -> Listening<'_> {
        let list = accepted.resources_list_changed == Some(true);
        let uris = accepted.resource_subscriptions.iter().flatten().cloned().collect();
        let (id, client) = (self.new_id(), Client::Listening(sink));
        self.watching().insert(id, Watcher { namespace, list, uris, client });
        Listening(self, id)
    }

    pub(super) fn remove(&self, id: WatcherId) {
        self.watching().remove(&id);
    }

    /// Tells those who watch a namespace that these memories of it changed. Nobody is waited for.
    pub(super) fn changed(&self, namespace: &Namespace, ids: &[RecordId]) {
        let changed: Vec<String> =
            ids.iter().map(|id| resources::uri(*id)).chain([resources::LIST.to_owned()]).collect();
        let concerned = |watcher: &&Watcher| {
            watcher.namespace == *namespace && (watcher.list || changed.iter().any(|uri| watcher.uris.contains(uri)))
        };
        let watchers: Vec<Watcher> = self.watching().values().filter(concerned).cloned().collect();
        for Watcher { list, uris, client, .. } in watchers {
            let changed: Vec<String> = changed.iter().filter(|uri| uris.contains(*uri)).cloned().collect();
            tokio::spawn(tokio::time::timeout(PATIENCE, async move {
                if list {
                    client.list_changed().await;
                }
                for uri in changed {
                    client.updated(uri).await;
                }
            }));
        }
    }
}

/// As long as this stands, a client is told.
pub(super) struct Listening<'w>(&'w Watchers, WatcherId);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.remove(self.1);
    }
}

impl Client {
    // One that cannot be told has left.
    async fn list_changed(&self) {
        match self {
            Client::Session(peer) => drop(peer.notify_resource_list_changed().await),
            Client::Listening(sink) => drop(sink.notify_resource_list_changed().await),
        }
    }

    async fn updated(&self, uri: String) {
        match self {
            Client::Session(peer) => {
                drop(peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await);
            }
            Client::Listening(sink) => drop(sink.notify_resource_updated(uri).await),
        }
    }
}
