//! Sessions by name: working sets that stay between requests. `routes.rs` has their paths, `recalled.rs` what is recalled
//! in them for models that run elsewhere.

mod recalled;
mod routes;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use amem_core::{Budget, Namespace, RecordId, Repair, Session, SessionOptions};

pub(super) use routes::routes;
use tokio::sync::Semaphore;

use super::{Server, ids, place};
use crate::http::{ApiError, Result};

/// What a session is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SessionName {
    /// The id that a client was given, or the name of the session that a user has without asking for it.
    Given(String),
    /// The one that a user has without asking for it.
    Of(Namespace),
}

/// What stands before a user's name in the name of the session that the user has without asking for it.
const OWN: &str = "user:";

impl SessionName {
    /// The same, if a client gave the name of this user's own session.
    fn of(self, namespace: &Namespace) -> Self {
        match self {
            SessionName::Given(id) if id.strip_prefix(OWN) == Some(namespace.as_str()) => Self::Of(namespace.clone()),
            name => name,
        }
    }

    /// A name that nobody can guess.
    fn new() -> Result<Self> {
        Ok(Self::Given(format!("sess-{}", ids::random::<16>()?)))
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionName::Given(id) => f.write_str(id),
            SessionName::Of(namespace) => write!(f, "{OWN}{namespace}"),
        }
    }
}

/// The sessions that are held. One that nobody has used for some time ends. When there are too many, or there is no room
/// for another's KV, the user who has most loses the one that was used longest ago; never one that is in use.
pub(crate) struct Sessions {
    held: Arc<AllHeld>,
    /// Requests that may wait, for a session or anything else, beside those that do.
    waiting: Arc<Semaphore>,
}

/// Requests that wait for one session at most.
const MAX_WAITING: usize = 64;

struct AllHeld {
    most: usize,
    idle: Duration,
    by_name: Mutex<ByName>,
}

#[derive(Default)]
struct ByName {
    sessions: HashMap<SessionName, Arc<Held>>,
    /// Whether a task looks for idle ones.
    is_swept: bool,
}

impl ByName {
    /// Takes out a session that nobody uses and that weighs something: the one that was used longest ago, of the namespace whose
    /// sessions weigh most. Whoever has many ends their own, and not those of others.
    fn take_unused(&mut self, weight: impl Fn(&Held) -> u64) -> Option<Arc<Held>> {
        let mut weights: HashMap<&Namespace, u64> = HashMap::new();
        self.sessions.values().for_each(|held| *weights.entry(&held.namespace).or_default() += weight(held));
        let of_namespace = |held: &Held| weights.get(&held.namespace).copied();
        let unused = self.sessions.iter().filter(|(_, held)| !is_in_use(held) && weight(held) > 0);
        let first = unused.min_by_key(|(_, held)| (Reverse(of_namespace(held)), *lock(&held.used)));
        let name = first.map(|(name, _)| name.clone())?;
        self.sessions.remove(&name)
    }
}

struct Held {
    namespace: Namespace,
    session: tokio::sync::Mutex<Session>,
    /// Requests that may wait for it beside those that do.
    waiting: Semaphore,
    max_turns: Option<usize>,
    /// What was recalled in it for models that run elsewhere, in order.
    told: Mutex<Vec<RecordId>>,
    used: Mutex<Instant>,
}

/// A session in use: it does not end while this is held.
pub(crate) struct InUse {
    name: SessionName,
    held: Arc<Held>,
    waiting: Arc<Semaphore>,
}

impl InUse {
    /// The session, when nobody else works with it.
    ///
    /// # Errors
    /// 429 when too many requests wait already, for this session or in all.
    pub(crate) async fn lock(&self) -> Result<tokio::sync::MutexGuard<'_, Session>> {
        if let Ok(session) = self.held.session.try_lock() {
            return Ok(session);
        }
        let _places = (place(&self.held.waiting)?, place(&self.waiting)?);
        Ok(self.held.session.lock().await)
    }

    pub(crate) fn name(&self) -> &SessionName {
        &self.name
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        *lock(&self.held.used) = Instant::now();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    pub(crate) fn new(most: usize, idle: Duration, waiting: Arc<Semaphore>) -> Self {
        Self { held: Arc::new(AllHeld { most, idle, by_name: Mutex::default() }), waiting }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.held.end_idle();
        lock(&self.held.by_name).sessions.len()
    }

    /// Ends those of a user, as soon as nobody uses them.
    pub(crate) fn end_all_of(&self, namespace: &Namespace) {
        self.held.end(|held| held.namespace == *namespace);
    }

    /// Ends one, as soon as nobody uses it.
    fn end(&self, name: &SessionName) {
        let ended = lock(&self.held.by_name).sessions.remove(name);
        drop(ended);
    }

    /// One that is held.
    fn get(&self, name: &SessionName) -> Option<InUse> {
        self.held.end_idle();
        let held = lock(&self.held.by_name).sessions.get(name).map(Arc::clone)?;
        Some(InUse { name: name.clone(), held, waiting: Arc::clone(&self.waiting) })
    }

    /// A function that ends a session which nobody uses, so that its room in the KV cache is free, and says whether it did. Its
    /// memories' KV is kept elsewhere. Where so many bytes are missing that all such sessions would not suffice, none is ended.
    pub(super) fn room_maker(&self) -> impl Fn(u64) -> bool + Send + Sync + 'static {
        let held = Arc::downgrade(&self.held);
        move |missing| {
            let Some(held) = held.upgrade() else { return false };
            let mut by_name = lock(&held.by_name);
            let unused = by_name.sessions.values().filter(|held| !is_in_use(held));
            if unused.map(|held| held.kv_cache_bytes()).sum::<u64>() < missing {
                return false;
            }
            let ended = by_name.take_unused(Held::kv_cache_bytes);
            drop(by_name);
            // Its context is let go of while nobody waits for the map.
            ended.is_some()
        }
    }

    /// Holds a new one, unless one of this name is held meanwhile.
    fn hold(&self, name: SessionName, held: Held) -> Result<InUse> {
        self.held.end_idle();
        let mut by_name = lock(&self.held.by_name);
        let mut ended = None;
        if !by_name.sessions.contains_key(&name) && by_name.sessions.len() >= self.held.most {
            ended = by_name.take_unused(|_| 1);
            if ended.is_none() {
                return Err(ApiError::overloaded("too many sessions are in use: try again later"));
            }
        }
        let held = Arc::clone(by_name.sessions.entry(name.clone()).or_insert_with(|| Arc::new(held)));
        if !std::mem::replace(&mut by_name.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.held)));
        }
        drop(by_name);
        // Its context is let go of while nobody waits.
        drop(ended);
        Ok(InUse { name, held, waiting: Arc::clone(&self.waiting) })
    }
}

impl AllHeld {
    fn end_idle(&self) {
        self.end(|held| !is_in_use(held) && lock(&held.used).elapsed() >= self.idle);
    }

    /// Ends sessions. Their contexts are let go of while nobody waits for the map.
    fn end(&self, which: impl Fn(&Arc<Held>) -> bool) {
        let ended: Vec<_> = lock(&self.by_name).sessions.extract_if(|_, held| which(held)).collect();
        drop(ended);
    }
}

impl Held {
    /// Bytes of the model's KV cache that it holds; 0 while somebody works with it.
    fn kv_cache_bytes(&self) -> u64 {
        self.session.try_lock().map_or(0, |mut session| session.kv_cache_bytes())
    }

    fn new(session: Session, namespace: Namespace, max_turns: Option<usize>) -> Self {
        let (session, used) = (tokio::sync::Mutex::new(session), Mutex::new(Instant::now()));
        Self { namespace, session, waiting: Semaphore::new(MAX_WAITING), max_turns, told: Mutex::default(), used }
    }
}

/// Whether somebody holds it beside the map. Nobody can begin to while the map is locked.
fn is_in_use(held: &Arc<Held>) -> bool {
    Arc::strong_count(held) > 1
}

/// Ends sessions that nobody uses, until there are none.
async fn sweep(held: Weak<AllHeld>) {
    const SOMETIMES: Duration = Duration::from_secs(60);
    while let Some(pause) = held.upgrade().map(|held| held.idle.clamp(Duration::from_millis(10), SOMETIMES)) {
        tokio::time::sleep(pause).await;
        let Some(held) = held.upgrade() else { return };
        held.end_idle();
        let mut by_name = lock(&held.by_name);
        if by_name.sessions.is_empty() {
            by_name.is_swept = false;
            return;
        }
    }
}

impl Server {
    /// The session of this name, which is opened if it is the one that a user has without asking for it.
    ///
    /// # Errors
    /// 404 when it is not there, or is another user's; 429 when as many as may be are in use.
    pub(crate) fn session(
        &self,
        name: &SessionName,
        namespace: &Namespace,
        budget_tokens: Option<usize>,
    ) -> Result<InUse> {
        let name = name.clone().of(namespace);
        if let Some(session) = self.sessions().get(&name).filter(|session| session.held.namespace == *namespace) {
            return Ok(session);
        }
        match name {
            SessionName::Given(_) => Err(no_session()),
            SessionName::Of(_) => {
                let options = self.session_options(budget_tokens);
                let session = self.memory().session(namespace, options)?;
                self.sessions().hold(name, Held::new(session, namespace.clone(), None))
            }
        }
    }

    /// Options of a session that holds so many tokens at most. The model holds no more than it can.
    fn session_options(&self, budget_tokens: Option<usize>) -> SessionOptions {
        let most = self.memory().model().info().context;
        let budget = budget_tokens.or(self.options().budget_tokens).map(|budget| budget.min(most));
        let mut options = SessionOptions::default();
        options.budget_tokens = budget;
        match self.options().recompute_ratio {
            // By sensitivity alone: no question is asked yet that attention could be read of.
            Some(ratio) => options.opening_repair(Repair::Weighted { budget: Budget::Ratio(ratio), layers: 0..0 }),
            None => options,
        }
    }
}

fn no_session() -> ApiError {
    ApiError::not_found("there is no such session: it may have ended").param("session")
}

#[cfg(test)]
mod tests {
    use amem_core::Memory;
    use amem_core::transformer::{Options, Transformer};
    use amem_cpu::Cpu;

    use super::*;

    fn memory() -> Memory {
        let model = Transformer::load(&amem_demo::files(), Cpu::new().unwrap(), Options::default()).unwrap();
        Memory::builder(Arc::new(model)).build().unwrap()
    }

    fn hold(sessions: &Sessions, memory: &Memory, name: &str) -> Result<InUse> {
        hold_of("me", sessions, memory, name)
    }

    fn hold_of(user: &str, sessions: &Sessions, memory: &Memory, name: &str) -> Result<InUse> {
        let namespace = Namespace::new(user).unwrap();
        let session = memory.session(&namespace, SessionOptions::default()).unwrap();
        sessions.hold(SessionName::Given(name.to_owned()), Held::new(session, namespace, None))
    }

    fn sessions(most: usize, waiting: usize) -> Sessions {
        Sessions::new(most, Duration::ZERO, Arc::new(Semaphore::new(waiting)))
    }

    /// How many requests wait for a session before one is told to come back.
    async fn most_waiting(session: &InUse) -> usize {
        let mut waiting = Vec::new();
        loop {
            let mut lock = Box::pin(session.lock());
            if let Some(refused) = futures_lite::future::poll_once(&mut lock).await {
                assert_eq!(refused.err().unwrap().status().as_u16(), 429);
                return waiting.len();
            }
            waiting.push(lock);
        }
    }

    #[tokio::test]
    async fn so_many_requests_wait_for_a_session_and_one_more_is_told_to_come_back() {
        let memory = memory();
        for (in_all, most) in [(1000, MAX_WAITING), (3, 3), (0, 0)] {
            let sessions = sessions(2, in_all);
            let session = hold(&sessions, &memory, "one").unwrap();
            let working = session.lock().await.unwrap();
            assert_eq!(most_waiting(&session).await, most);
            assert_eq!(most_waiting(&session).await, most, "whoever left waits no longer");
            assert!(hold(&sessions, &memory, "other").unwrap().lock().await.is_ok(), "nobody works with this one");
            drop(working);
            assert!(session.lock().await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_session_that_is_in_use_neither_ends_nor_makes_room() {
        let (memory, sessions) = (memory(), sessions(2, 1));
        let first = hold(&sessions, &memory, "first").unwrap();
        let second = hold(&sessions, &memory, "second").unwrap();
        assert_eq!(hold(&sessions, &memory, "third").err().unwrap().status().as_u16(), 429);
        assert_eq!(sessions.count(), 2, "though nobody has used them for as long as they may be idle");
        drop(first);
        let third = hold(&sessions, &memory, "third").unwrap();
        assert!(sessions.get(second.name()).is_some() && sessions.count() == 2);
        sessions.end(second.name());
        assert!(sessions.get(second.name()).is_none());
        assert!(second.lock().await.unwrap().resident().is_empty(), "whoever uses it goes on");
        drop((second, third));
        assert_eq!(sessions.count(), 0);
    }

    #[tokio::test]
    async fn whoever_opens_many_sessions_ends_their_own() {
        let memory = memory();
        let sessions = Sessions::new(4, Duration::from_secs(3600), Arc::new(Semaphore::new(1)));
        let open = |user: &str, name: &str| {
            hold_of(user, &sessions, &memory, name).unwrap();
            let by_name = lock(&sessions.held.by_name);
            let mut held: Vec<String> = by_name.sessions.keys().map(SessionName::to_string).collect();
            held.sort_unstable();
            held.join(" ")
        };
        for (user, name, held) in [
            ("alice", "a", "a"),
            ("bob", "b1", "a b1"),
            ("bob", "b2", "a b1 b2"),
            ("bob", "b3", "a b1 b2 b3"),
            ("bob", "b4", "a b2 b3 b4"),
            ("carl", "c", "a b3 b4 c"),
            ("dora", "d", "a b4 c d"),
            ("emil", "e", "b4 c d e"),
        ] {
            assert_eq!(open(user, name), held);
        }
        assert!(!sessions.room_maker()(0), "none of them has KV");
        assert_eq!(open("bob", "b5"), "b5 c d e");
    }

    #[test]
    fn a_users_own_session_goes_by_the_users_name() {
        let alice = Namespace::new("alice").unwrap();
        let name = |text: &str| SessionName::Given(text.to_owned()).of(&alice);
        assert_eq!(name("user:alice"), SessionName::Of(alice.clone()));
        for other in ["user:alic", "user:alice2", "alice", "user:"] {
            assert_eq!(name(other), SessionName::Given(other.to_owned()));
        }
        assert_eq!(SessionName::Of(alice).to_string(), "user:alice");
    }
}
