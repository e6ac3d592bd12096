//! Tokens of hosts and people: rows `access_token:id`, a hash each and never a secret.

use nodestats_core::token::Grant;
use nodestats_wire::v1::Purpose;
use surrealdb::types::{RecordId, SurrealValue, Value};

use crate::database::bind;
use crate::{Error, Store};

/// What became of a token that was to be made by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// It is there now.
    New,
    /// Nobody else may join by that token.
    UsedUp,
}

fn record(id: &str) -> Value {
    RecordId::new("access_token", id).into_value()
}

fn json(grant: &Grant) -> Value {
    let json = serde_json::to_value(grant).expect("a grant is plain data");
    json.into_value()
}

impl Store {
    /// What is kept of this token.
    pub async fn grant(&self, id: &str) -> Result<Option<Grant>, Error> {
        let rows = self
            .database
            .select("SELECT VALUE grant FROM $row", bind([("row", record(id))]))
            .await
            .map_err(Error::Unavailable)?;
        rows.into_iter().next().map(read).transpose()
    }

    /// Of all tokens, those that have ended among them.
    pub async fn grants(&self) -> Result<Vec<Grant>, Error> {
        let rows: Vec<Value> = self
            .database
            .select("SELECT VALUE grant FROM access_token", bind([]))
            .await
            .map_err(Error::Unavailable)?;
        rows.into_iter().map(read).collect()
    }

    /// Keeps a new one.
    pub async fn save_grant(&self, grant: &Grant) -> Result<(), Error> {
        let variables = bind([("row", record(&grant.token.id)), ("grant", json(grant))]);
        self.database
            .write("UPSERT $row SET grant = $grant RETURN NONE", variables, 0)
            .await
            .map_err(Error::Unavailable)
    }

    /// Keeps a new one, which is one of the uses of the token `by`, both or neither.
    pub async fn join(&self, by: &Grant, grant: &Grant) -> Result<Joined, Error> {
        let variables = bind([
            ("by", record(&by.token.id)),
            ("row", record(&grant.token.id)),
            ("grant", json(grant)),
        ]);
        // Two replicas that take the last use at once: one transaction fails, and is asked again.
        let statements = "BEGIN; \
             LET $used = UPDATE $by SET grant.token.purpose.uses_left -= 1 \
                 WHERE grant.token.purpose.uses_left > 0 RETURN AFTER; \
             IF array::len($used) > 0 { UPSERT $row SET grant = $grant RETURN NONE }; \
             COMMIT;";
        self.database
            .write(statements, variables, 0)
            .await
            .map_err(Error::Unavailable)?;
        Ok(match self.grant(&grant.token.id).await? {
            Some(_) => Joined::New,
            None => Joined::UsedUp,
        })
    }

    /// Forgets a token, which ends it, and returns what was kept of it; `None` where there was none.
    pub async fn revoke(&self, id: &str) -> Result<Option<Grant>, Error> {
        let known = self.grant(id).await?;
        self.database
            .delete("DELETE $row RETURN NONE", bind([("row", record(id))]))
            .await
            .map_err(Error::Unavailable)?;
        Ok(known)
    }

    /// The tokens of the host `node`, those that have ended among them.
    pub async fn grants_of_host(&self, node: &str) -> Result<Vec<Grant>, Error> {
        let mut grants = self.grants().await?;
        grants.retain(|grant| {
            matches!(&grant.token.purpose, Purpose::Host { node: of } if of.eq_ignore_ascii_case(node))
        });
        Ok(grants)
    }
}

fn read(row: Value) -> Result<Grant, Error> {
    serde_json::from_value(row.into_json_value()).map_err(|_| Error::Damaged("token"))
}
