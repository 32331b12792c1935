//! The columns of an inventory and the names that people give them.

use super::names;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Column {
    Tenant,
    IntegrationKey,
    ConnectionId,
    Providers,
    Account,
    AuthMode,
}

impl Column {
    pub const ALL: [Self; 6] =
        [Self::Tenant, Self::IntegrationKey, Self::ConnectionId, Self::Providers, Self::Account, Self::AuthMode];

    /// Without these there is no row. The tenant may come from outside, the rest has a default.
    pub const REQUIRED: [Self; 3] = [Self::IntegrationKey, Self::Providers, Self::Account];

    /// The name in CSV headers and as JSON key.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::IntegrationKey => "integration_key",
            Self::ConnectionId => "connection_id",
            Self::Providers => "providers",
            Self::Account => "account",
            Self::AuthMode => "auth_mode",
        }
    }

    /// What a cell of the column holds, for messages.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::IntegrationKey => "integration key",
            Self::ConnectionId => "connection id",
            Self::Providers => "provider",
            Self::Account => "account",
            Self::AuthMode => "auth mode",
        }
    }

    /// Other spellings, lower case with `_` for everything between words.
    const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Tenant => &["tenant", "tenants", "tenant_s"],
            Self::IntegrationKey => {
                &["integration_key", "nango_integration_key", "key", "nango_key", "integration", "provider_config_key"]
            }
            Self::ConnectionId => &["connection_id", "nango_connection_id", "connection"],
            Self::Providers => &["providers", "provider", "provider_s", "v5_providers", "v5_provider", "v5_provider_s"],
            Self::Account => &["account"],
            Self::AuthMode => &["auth_mode", "nango_auth_mode", "auth"],
        }
    }

    /// The column that a header means: `V5 Provider(s)`, `integration-key`, `Connection id`, …
    pub fn named(header: &str) -> Option<Self> {
        // No alias is this long; a 10 MB header cell must not be copied to find that out.
        if header.len() > 64 {
            return None;
        }
        let name = normalised(header);
        Self::ALL.into_iter().find(|column| column.aliases().contains(&name.as_str()))
    }

    /// The column that a mistyped header probably means.
    pub fn close_to(header: &str) -> Option<Self> {
        if header.len() > 64 {
            return None;
        }
        let name = normalised(&names::plain(header));
        let aliases = Self::ALL.into_iter().flat_map(|column| column.aliases().iter().copied());
        names::closest(&name, aliases).and_then(Self::named)
    }

    /// `tenant, integration_key, …`
    pub fn list() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

fn normalised(header: &str) -> String {
    let mut name = String::new();
    for c in header.chars() {
        if matches!(c, ' ' | '\t' | '_' | '-' | '(' | ')') {
            if !name.ends_with('_') && !name.is_empty() {
                name.push('_');
            }
        } else {
            name.push(c.to_ascii_lowercase());
        }
    }
    name.truncate(name.trim_end_matches('_').len());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_known_in_every_usual_spelling() {
        for (header, column) in [
            ("Nango Integration Key", Column::IntegrationKey),
            ("integration-key", Column::IntegrationKey),
            ("KEY", Column::IntegrationKey),
            ("V5 Provider(s)", Column::Providers),
            ("provider", Column::Providers),
            ("Connection id", Column::ConnectionId),
            ("Auth mode", Column::AuthMode),
            ("Tenant(s)", Column::Tenant),
        ] {
            assert_eq!(Column::named(header), Some(column), "{header}");
        }
        assert_eq!(Column::named("tenаnt"), None, "a Cyrillic letter is not forgiven");
        assert_eq!(Column::close_to("tenаnt"), Some(Column::Tenant), "but understood");
        assert_eq!(Column::close_to("Acount"), Some(Column::Account));
    }
}
