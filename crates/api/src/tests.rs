//! Routes on a real in-memory database.
