//! Short names that people and schedulers give: tenants, instances, humans.

use std::{fmt, str::FromStr, sync::Arc};

use super::{NameError, text_form};
use crate::limits::NAME_BYTES_MAX;

/// Checks that a text is one part of a name. It begins with a letter or digit, has only letters, digits, `.`, `_`, `-`,
/// has no `..`, and is at most [`NAME_BYTES_MAX`] bytes long.
pub(super) fn check_part(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("a part of it is empty");
    }
    if text.len() > NAME_BYTES_MAX {
        return Err("a part of it is longer than 128 bytes");
    }
    if text.contains("..") {
        return Err("it contains `..`");
    }
    if !text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        return Err("a part of it does not begin with a letter or digit");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err("it is made of letters, digits, `.`, `_` and `-`");
    }
    Ok(())
}

impl TenantName {
    /// Returns the tenant of the team that runs the daemon, as the shipped policy calls it.
    pub fn platform() -> Self {
        TenantName("platform".into())
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name: 1 to [`NAME_BYTES_MAX`] bytes of ASCII.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                check(text).map_err(|why| NameError::new(text, $wanted, why))?;
                Ok($name(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        text_form!($name, as_str);
    };
}

label! {
    /// The owner of data, models and jobs: `acme`. Lower-case letters, digits and `-`, so that different names do not
    /// look alike.
    TenantName, "a tenant name", |text| {
        check_part(text)?;
        if text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            Ok(())
        } else {
            Err("a tenant name is made of a-z, 0-9 and `-`")
        }
    }
}
label! {
    /// The scheduler's name for one member of an attempt: a pod, a node, a rank group.
    InstanceName, "an instance name", check_part
}
label! {
    /// The name of a person, for separation of duties: `ada`. In lower case, so that one person does not have two names.
    HumanName, "the name of a person", |text| {
        check_part(text)?;
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("the name of a person is written in lower case");
        }
        Ok(())
    }
}
label! {
    /// A group of people as Leasehold calls it: `ml-platform`. Lower-case letters, digits and `-`, so that different
    /// names do not look alike.
    GroupName, "the name of a group", |text| {
        check_part(text)?;
        if text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            Ok(())
        } else {
            Err("the name of a group is made of a-z, 0-9 and `-`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_has_one_name() {
        assert!("ada".parse::<HumanName>().is_ok());
        assert!("Ada".parse::<HumanName>().unwrap_err().to_string().contains("lower case"));
    }

    #[test]
    fn names_with_dots_controls_or_excess_are_refused() {
        for t in ["", "..", "a..b", "a/b", "a b", "a\n", "\u{0}", "-a", ".a", "ü", &"a".repeat(129)] {
            assert!(t.parse::<InstanceName>().is_err(), "{t:?}");
        }
        for t in ["a", "node-7", "tuner.0_1", &"a".repeat(128)] {
            assert!(t.parse::<InstanceName>().is_ok(), "{t:?}");
        }
    }

    #[test]
    fn a_tenant_has_no_other_case_twin() {
        assert!("Acme".parse::<TenantName>().is_err());
        assert!("acme-2".parse::<TenantName>().is_ok());
    }
}
