//! The catalog: which callers are known, and which resources exist. One TOML file per tenant, owned by that team.
//!
//! Owns principals, datasets, models, checkpoint lines and audiences, and the strict reading of them: unknown keys,
//! duplicates, missing fields and dangling references are errors, all reported at once, each with its file and line. No one is known
//! by default, and if there is a platform's file, it says which identities each tenant may name. A catalog never changes: a
//! reload makes another one. A start and a reload take the good files on disk. Decides nothing; has no clock, no lock, no await.
//!
//! | File | Noun |
//! |---|---|
//! | `index` | [`Catalog`]: its queries |
//! | `principal` `resource` `audience` `tree` | its entries, and the search for a principal |
//! | `load` | reading a directory |
//! | `checks` `locations` | the checks across files; the check that tenants' locations are apart |
//! | `accepted` | reading the directory at a start or a reload: which files and entries are accepted |
//! | `earlier` | the entries that were in force before |
//! | `file` `value` | one tenant's file, its values |
//! | `errors` | [`CatalogErrors`]: all that is wrong |

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

/// Implements a closed list of words: `as_str`, `ALL`, `Display` and a `FromStr` whose error names them all.
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
                    _ => Err(concat!("it is one of:" $(, " ", $text)*)),
                }
            }
        }
    };
}
use words;
