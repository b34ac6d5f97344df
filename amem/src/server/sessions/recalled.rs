//! What is recalled in a session for models that run elsewhere.

use std::collections::HashSet;

use amem_core::{Namespace, Recall, Recollection, RecordId};
use futures_util::future::BoxFuture;

use super::{InUse, SessionName, lock};
use crate::http::Result;
use crate::memories::{Sessions, WorkingSet};
use crate::server::Server;

impl Sessions for Server {
    fn end_all_of(&self, namespace: &Namespace) {
        self.sessions().end_all_of(namespace);
    }

    fn working_set(
        &self,
        session: &str,
        namespace: &Namespace,
        budget_tokens: Option<usize>,
    ) -> Result<Box<dyn WorkingSet>> {
        Ok(Box::new(self.session(&SessionName::Given(session.to_owned()), namespace, budget_tokens)?))
    }
}

impl WorkingSet for InUse {
    fn session(&self) -> String {
        self.name.to_string()
    }

    fn max_turns(&self) -> Option<usize> {
        self.held.max_turns
    }

    fn recall(&self, recall: Recall) -> BoxFuture<'_, Result<(Vec<Recollection>, usize)>> {
        Box::pin(async {
            let mut session = self.lock().await?;
            let found = session.recall(recall).await?;
            Ok((found, session.budget_tokens()))
        })
    }

    fn told(&self) -> Vec<RecordId> {
        lock(&self.held.told).clone()
    }

    fn tell(&self, ids: &[RecordId]) {
        let mut told = lock(&self.held.told);
        let known: HashSet<RecordId> = told.iter().copied().collect();
        told.extend(ids.iter().filter(|id| !known.contains(id)));
    }
}
