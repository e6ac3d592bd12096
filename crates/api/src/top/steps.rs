//! What those that used most in a span used in each step of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use nodestats_wire::Timestamp;
use nodestats_wire::v1::{Top, TopRow};

use super::fold::{Fold, Found, Pods, key};
use super::read::Told;
use crate::history::buckets::Levels;
use crate::query::{By, Ranking};
use crate::{ApiError, App};

/// The steps under way, each with rows for the same.
pub(super) struct Steps {
    ranking: Ranking,
    /// The rows of the whole span in their order.
    rows: Vec<TopRow>,
    keys: Arc<HashSet<String>>,
    folds: BTreeMap<Timestamp, Fold>,
}

impl Steps {
    pub(super) fn new(ranking: Ranking, rows: Vec<TopRow>) -> Self {
        let keys = rows.iter().filter_map(|row| key(ranking.by, row)).collect();
        Self {
            ranking,
            rows,
            keys: Arc::new(keys),
            folds: BTreeMap::new(),
        }
    }

    /// Adds what a node tells of a step.
    pub(super) async fn add(
        &mut self,
        app: &App,
        begin: Timestamp,
        told: Told,
        pods: &mut Pods,
    ) -> Result<(), ApiError> {
        let fold = self.folds.entry(begin);
        let fold = fold.or_insert_with(|| Fold::only(self.ranking, Arc::clone(&self.keys)));
        fold.add(app, told, pods).await
    }

    /// Which levels answered.
    pub(super) fn resolution(&self) -> &'static str {
        let mut all = Levels::default();
        self.folds.values().for_each(|fold| all.add(fold.levels()));
        all.name()
    }

    /// Each step: its rows in the order of the whole span, and all others together.
    pub(super) fn finish(self) -> BTreeMap<Timestamp, Top> {
        let Self {
            ranking,
            rows,
            folds,
            ..
        } = self;
        let finish = |(begin, fold): (Timestamp, Fold)| {
            let Found {
                rows: of_step,
                others,
                nodes,
                ..
            } = fold.finish();
            let of_step = of_step.into_iter();
            let mut of_step: HashMap<String, TopRow> = of_step
                .filter_map(|row| Some((key(ranking.by, &row)?, row)))
                .collect();
            let named = rows.iter().filter_map(|row| {
                let found = of_step.remove(&key(ranking.by, row)?)?;
                Some(match ranking.by {
                    // Which pods processes are of was looked up for the whole span.
                    By::Process => TopRow {
                        namespace: row.namespace.clone(),
                        pod: row.pod.clone(),
                        workload: row.workload.clone(),
                        ..found
                    },
                    _ => found,
                })
            });
            let named = named.collect();
            let mut rest = TopRow::default();
            others.fill(&mut rest);
            let top = Top {
                nodes: Some(nodes),
                rows: Some(named),
                rest: (others.count > 0).then_some(rest),
                ..Top::default()
            };
            (begin, top)
        };
        folds.into_iter().map(finish).collect()
    }
}
