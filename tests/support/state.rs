//! One contract for both databases: each test runs on an empty state of either.
#![allow(dead_code, reason = "each test binary uses its part of this")]

use cutover::store::Place;

use crate::postgres_server;

/// An empty state for one test.
pub struct State {
    pub place: Place,
    pub dir: tempfile::TempDir,
}

impl State {
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { place: Place::Sqlite(dir.path().join("cutover.db")), dir }
    }

    pub fn postgres() -> Self {
        Self { place: postgres_server::shared().database().parse().unwrap(), dir: tempfile::tempdir().unwrap() }
    }
}

/// Every test for both databases.
macro_rules! contract {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::State::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::State::postgres()).await;
            })*
        }
    };
}
