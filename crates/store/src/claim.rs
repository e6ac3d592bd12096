//! Who seals: of all that share a database one does, by a claim in it that expires. The row `claim:seal`
//! names the holder; what seals writes it in the same transaction, so that of two who think they hold it
//! one fails.

use std::time::Duration;

use nodestats_wire::Timestamp;
use surrealdb::types::{RecordId, SurrealValue, Value, Variables};

use crate::database::{self, Database, bind};
use crate::{Error, Store};

/// A claim that is not renewed ends after so long: the clocks of replicas may differ by some of it.
const LASTS: Duration = Duration::from_mins(2);

/// Statements at the begin of a transaction that only the holder of the claim may make.
pub(crate) const GUARD: &str = "IF (SELECT VALUE holder FROM ONLY $claim) != $me { THROW \
     'another replica has the claim' }; UPDATE $claim SET until = $until RETURN NONE; ";

fn record() -> Value {
    RecordId::new("claim", "seal").into_value()
}

impl Store {
    /// Takes the claim, or renews it; `false` while another replica has it.
    pub(crate) async fn claim(&self, now: Timestamp) -> Result<bool, Error> {
        let statements = "IF (SELECT VALUE holder FROM ONLY $claim) IN [NONE, $me] \
             OR (SELECT VALUE until FROM ONLY $claim) < $now \
             { UPSERT $claim SET holder = $me, until = $until RETURN NONE };";
        let mut variables = self.claimed(now);
        variables.insert("now".to_owned(), now.micros().into_value());
        self.database
            .write(statements, variables, 0)
            .await
            .map_err(Error::Unavailable)?;
        let holders: Vec<String> = self
            .database
            .select(
                "SELECT VALUE holder FROM $claim",
                bind([("claim", record())]),
            )
            .await
            .map_err(Error::Unavailable)?;
        Ok(holders
            .first()
            .is_some_and(|holder| **holder == *self.replica))
    }

    /// The variables of [`GUARD`].
    pub(crate) fn claimed(&self, now: Timestamp) -> Variables {
        let until = now.plus_micros(LASTS.as_micros() as i64);
        bind([
            ("claim", record()),
            ("me", self.replica.to_string().into_value()),
            ("until", until.micros().into_value()),
        ])
    }

    /// Lets another replica seal at once.
    pub(crate) async fn release_claim(&self) -> Result<(), Error> {
        let variables = bind([
            ("claim", record()),
            ("me", self.replica.to_string().into_value()),
        ]);
        self.database
            .delete("DELETE $claim WHERE holder = $me RETURN NONE", variables)
            .await
            .map_err(Error::Unavailable)
    }
}

/// Ends a claim whose holder cannot be any more: nobody else has an embedded database.
pub(crate) async fn end_claim(database: &Database) -> Result<(), database::Error> {
    let claim = bind([("claim", record())]);
    database
        .query("DELETE $claim RETURN NONE", claim)
        .await
        .map(drop)
}
