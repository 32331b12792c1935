//! Where the state is: a file of this machine, or a PostgreSQL database that several share.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Where the state is. Holds no password: those come from `PGPASSWORD` or a password file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Sqlite(PathBuf),
    /// A URL as `libpq` takes it.
    Postgres(String),
}

/// A `--state` that names no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlaceError {
    #[error("only `sqlite:PATH` and `postgres://USER@HOST/DATABASE` are known")]
    Scheme,
    #[error("name a file, as in `sqlite:cutover.db`: the state must outlive the run")]
    Memory,
    #[error(
        "leave the password out of the address, which every user of the machine can see: put it into PGPASSWORD or a password file (PGPASSFILE)"
    )]
    Password,
    #[error("this is not an address of a PostgreSQL database")]
    Postgres,
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(url: &str) -> Result<Self, PlaceError> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            return match path.strip_prefix("//").unwrap_or(path) {
                "" | ":memory:" => Err(PlaceError::Memory),
                path => Ok(Self::Sqlite(PathBuf::from(path))),
            };
        }
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let authority = rest.ok_or(PlaceError::Scheme)?.split(['/', '?']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        if user.contains(':') || query(url).any(|(name, _)| name == "password") {
            return Err(PlaceError::Password);
        }
        PgConnectOptions::from_str(url).map_err(|_| PlaceError::Postgres)?;
        Ok(Self::Postgres(url.to_owned()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => f.write_str(url.split('?').next().unwrap_or_default()),
        }
    }
}

impl Place {
    /// The file beside which the lock file goes; a PostgreSQL database needs none.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            Self::Postgres(_) => None,
        }
    }
}

/// How to connect. To another machine only over TLS, unless the address says otherwise.
pub(super) fn postgres_options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?;
    let here =
        ["localhost", "127.0.0.1", "[::1]", "::1"].contains(&options.get_host()) || options.get_socket().is_some();
    let decided = query(url).any(|(name, _)| name == "sslmode" || name == "ssl-mode");
    Ok(if here || decided { options } else { options.ssl_mode(PgSslMode::Require) })
}

fn query(url: &str) -> impl Iterator<Item = (&str, &str)> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter_map(|pair| pair.split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_databases_are_told_apart_and_passwords_are_refused() {
        let parse = |url: &str| url.parse::<Place>();
        assert_eq!(parse("sqlite:a/b.db"), Ok(Place::Sqlite("a/b.db".into())));
        assert_eq!(parse("sqlite:///var/b.db"), Ok(Place::Sqlite("/var/b.db".into())));
        assert_eq!(parse("sqlite:"), Err(PlaceError::Memory));
        assert_eq!(parse("sqlite::memory:"), Err(PlaceError::Memory));
        assert_eq!(parse("mysql://x"), Err(PlaceError::Scheme));
        for url in ["postgres://me@db:5433/cutover", "postgresql:///cutover?host=/run/postgresql", "postgres://db/x"] {
            assert_eq!(parse(url), Ok(Place::Postgres(url.to_owned())));
        }
        for url in ["postgres://me:canary@db/x", "postgres://me@db/x?password=canary"] {
            let error = parse(url).unwrap_err();
            assert!(error == PlaceError::Password && !error.to_string().contains("canary"), "{error}");
        }
    }

    #[test]
    fn another_machine_is_reached_over_tls_unless_the_address_says_otherwise() {
        let mode = |url: &str| format!("{:?}", postgres_options(url).unwrap().get_ssl_mode());
        assert_eq!(mode("postgres://me@db.example/x"), "Require");
        assert_eq!(mode("postgres://me@db.example/x?sslmode=verify-full"), "VerifyFull");
        assert_eq!(mode("postgres://me@127.0.0.1/x"), "Prefer");
    }
}
