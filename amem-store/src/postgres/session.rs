//! One connection to the server.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use futures_util::future;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, Statement};

use super::error::{Failure, PostgresError, told};
use super::options::Settings;

/// A parameter of a statement.
pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

pub(super) struct Session {
    client: Client,
    /// Moves bytes between the client and the server.
    driver: JoinHandle<()>,
    /// By their text. All texts are constants, so there are few.
    statements: Mutex<HashMap<&'static str, Statement>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Otherwise it would wait for the answers of a server that may be gone.
        self.driver.abort();
    }
}

impl Session {
    pub(super) async fn connect(settings: &Settings) -> Result<Self, PostgresError> {
        let unreachable = |reason| PostgresError::Unreachable { ledger: settings.ledger.clone(), reason };
        let limit = settings.options.connect_timeout;
        match timeout(limit, Self::open(settings)).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => Err(unreachable(told(&error))),
            Err(_) => Err(unreachable(format!("it did not answer within {limit:?}"))),
        }
    }

    async fn open(settings: &Settings) -> Result<Self, tokio_postgres::Error> {
        let (client, driver) = match &settings.tls {
            Some(tls) => {
                let (client, connection) = settings.config.connect(tls.clone()).await?;
                // How it ended is told by the calls that it served.
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
            None => {
                let (client, connection) = settings.config.connect(NoTls).await?;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
        };
        let session = Self { client, driver, statements: Mutex::default() };
        session.client.batch_execute(&setup(settings)).await?;
        Ok(session)
    }

    /// Whether it is known to be of no more use.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Statements without parameters or answers.
    pub(super) async fn batch(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute(sql).await
    }

    /// Begins a transaction and asks for rows in one exchange.
    pub(super) async fn begin_with_rows(
        &self,
        begin: &str,
        sql: &'static str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Failure> {
        // Prepared before, so that both go to the server in this order.
        self.statement(sql).await?;
        let begun = async { Ok(self.batch(begin).await?) };
        Ok(future::try_join(begun, self.rows(sql, params)).await?.1)
    }

    pub(super) async fn rows(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, Failure> {
        let statement = self.statement(sql).await?;
        Ok(self.client.query(&statement, params).await?)
    }

    /// Returns how many rows were written.
    pub(super) async fn execute(&self, sql: &'static str, params: &[Param<'_>]) -> Result<u64, Failure> {
        let statement = self.statement(sql).await?;
        Ok(self.client.execute(&statement, params).await?)
    }

    async fn statement(&self, sql: &'static str) -> Result<Statement, Failure> {
        let known = self.statements.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.lock().unwrap_or_else(PoisonError::into_inner).insert(sql, statement.clone());
        Ok(statement)
    }
}

/// What every connection begins with. The schema's name is one that needs no escaping.
fn setup(settings: &Settings) -> String {
    let options = &settings.options;
    let (schema, statements) = (&options.schema, options.statement_timeout.as_millis());
    // A machine that dies in the middle of a transaction must not keep its locks. And a server that was told to confirm
    // commits before they are durable is told otherwise.
    format!(
        "SET search_path TO \"{schema}\"; SET statement_timeout TO {statements}; \
         SET idle_in_transaction_session_timeout TO {statements}; \
         SET default_transaction_isolation TO 'read committed'; \
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
}
