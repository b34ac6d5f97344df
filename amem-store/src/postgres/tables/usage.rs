//! What is charged for.

use amem_core::{Amounts, Namespace, Timestamp, UsageEvent, UsageQuery, UsageTotal};

use super::super::rows::{get, utf8};
use super::super::session::Param;
use super::{Failure, Result, STATEMENT_ROWS, Tables};

/// What the checksum of an event `u` of usage must be.
macro_rules! usage_checksum {
    () => {
        "substr(sha256(u.id || int8send(u.at) || int8send(u.requests) || int8send(u.memory_ops) || \
         int8send(u.reused_tokens) || int8send(u.repaired_tokens) || int8send(u.prefilled_tokens) || \
         int8send(u.generated_tokens) || int8send(u.chunks) || int8send(u.reused_chunks)), 1, 8)"
    };
}

impl Tables<'_> {
    pub(in crate::postgres) async fn record_usage(&self, events: &[UsageEvent]) -> Result<()> {
        self.begin_change().await?;
        let insert = concat!(
            "INSERT INTO usage_event SELECT u.*, ",
            usage_checksum!(),
            " FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
             $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]) u(id, namespace, at, requests, \
             memory_ops, reused_tokens, repaired_tokens, prefilled_tokens, generated_tokens, chunks, reused_chunks) \
             ON CONFLICT DO NOTHING"
        );
        for events in events.chunks(STATEMENT_ROWS) {
            let ids: Vec<Vec<u8>> = events.iter().map(|event| event.id.to_bytes().to_vec()).collect();
            let names: Vec<&[u8]> = events.iter().map(|event| event.namespace.as_str().as_bytes()).collect();
            let moments: Vec<i64> = events.iter().map(|event| event.at.0).collect();
            let all: Vec<[u64; 8]> = events.iter().map(|event| event.amounts.bounded().to_array()).collect();
            let amounts: [Vec<i64>; 8] = std::array::from_fn(|n| all.iter().map(|all| all[n] as i64).collect());
            let mut params: Vec<Param<'_>> = vec![&ids, &names, &moments];
            params.extend(amounts.iter().map(|amounts| amounts as Param<'_>));
            self.execute(insert, &params).await?;
        }
        Ok(())
    }

    pub(in crate::postgres) async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        // A sum that no number here can hold counts as the largest.
        macro_rules! sums {
            ($($amount:literal),*) => { concat!($("least(sum(", $amount, "), 9223372036854775807)::bigint, "),*) };
        }
        let select = concat!(
            "SELECT namespace, count(*), min(at), max(at), ",
            sums!(
                "requests",
                "memory_ops",
                "reused_tokens",
                "repaired_tokens",
                "prefilled_tokens",
                "generated_tokens",
                "chunks",
                "reused_chunks"
            ),
            "bool_and(u.checksum = ",
            usage_checksum!(),
            ") FROM usage_event u WHERE ($1::bytea IS NULL OR namespace = $1) AND at >= $2 AND at < $3 \
             GROUP BY namespace ORDER BY namespace NULLS FIRST"
        );
        let asked = query.namespace.as_ref().map(|namespace| namespace.as_str().as_bytes());
        let [since, until] = [query.since.map_or(i64::MIN, |at| at.0), query.until.map_or(i64::MAX, |at| at.0)];
        let rows = self.rows(select, &[&asked, &since, &until]).await?;
        let totals = rows.iter().map(|row| {
            if !get::<bool>(row, 12)? {
                return Err(Failure::Damaged("an event of usage is not what was written".to_owned()));
            }
            let damaged = || Failure::Damaged("a namespace's name is not what was written".to_owned());
            let name = get::<Option<&[u8]>>(row, 0)?.map(|name| utf8(name).ok_or_else(damaged)).transpose()?;
            let namespace = name.map(Namespace::new).transpose().map_err(|_| damaged())?;
            let mut amounts = [0; 8];
            for (index, amount) in amounts.iter_mut().enumerate() {
                *amount = get::<i64>(row, 4 + index)?.unsigned_abs();
            }
            let mut total = UsageTotal::new(namespace, Timestamp(get(row, 2)?));
            total.events = get::<i64>(row, 1)?.unsigned_abs();
            total.amounts = Amounts::from_array(amounts);
            total.last = Timestamp(get(row, 3)?);
            Ok(total)
        });
        totals.collect()
    }
}
