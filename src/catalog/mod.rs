//! The catalog: which callers are known, and which resources exist. Each tenant has one TOML file, and the team of the
//! tenant owns it.
//!
//! The catalog contains principals, datasets, models, checkpoint lines and audiences. Unknown keys, duplicates, missing
//! fields and references to nothing are errors. All errors are reported at once, with file and line. No caller is known
//! by default. A platform file, if there is one, says which identities each tenant may name. A catalog never changes: a
//! reload makes another one. When the daemon starts or reloads, it accepts the files without mistakes. This module
//! decides nothing. It uses no clock and no lock, and is not async.
//!
//! | File | Contains |
//! |---|---|
//! | `index` | [`Catalog`]: its queries |
//! | `principal` `resource` `audience` `tree` | its entries, and the search for a principal |
//! | `exception` | temporary exceptions: observed tenants, and waived rules |
//! | `load` | reading a directory |
//! | `checks` `locations` | the checks across files; the check that no entry gives access to the bytes of another tenant |
//! | `accepted` | reading the directory when the daemon starts or reloads: which files and entries are accepted |
//! | `earlier` | the entries that were in force before a reload |
//! | `file` `value` | one tenant's file, its values |
//! | `errors` | [`CatalogErrors`]: all mistakes in the files |

mod accepted;
mod audience;
mod checks;
mod earlier;
mod errors;
mod exception;
mod file;
mod index;
mod load;
mod locations;
mod principal;
mod resource;
mod tree;
mod value;

pub use audience::{Audience, Checks, Presenter, S3Endpoint};
pub use errors::CatalogErrors;
pub use exception::{Exceptions, Waiver};
pub use index::Catalog;
pub use principal::{HumanPattern, IdentityUse, Principal};
pub use resource::{
    CheckpointFacts, Classification, DatasetFacts, Enforcement, ModelFacts, Resource, ResourceFacts, Risk,
    SourceTrust, Tier, ToolAccess,
};

/// Makes an enum whose variants have fixed texts. The error of its `FromStr` lists all texts.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $variant:ident = $text:literal, )* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $( $(#[$vdoc])* $variant, )* }

        impl $name {
            pub const ALL: &'static [$name] = &[ $($name::$variant,)* ];

            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = &'static str;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok($name::$variant),)*
                    _ => Err(concat!("it must be one of:" $(, " ", $text)*)),
                }
            }
        }
    };
}
use words;
