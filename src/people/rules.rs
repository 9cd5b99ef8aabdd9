//! The rules about who may log in, and with which groups.

use std::time::Duration;

use super::{fault::LoginFault, provider::PersonClaims};
use crate::{name::GroupName, plain};

/// The rules of the configuration for logins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginRules {
    /// The groups that Leasehold knows, each with the provider's name for it (the value in the groups claim of an ID
    /// token). A person gets their first group in this list, unless they name another group.
    pub groups: Vec<(GroupName, String)>,
    /// How long a login lasts.
    pub life: Duration,
    /// The methods (`amr`) that a person must have used to log in.
    pub required_amr: Vec<String>,
    /// Whether an ID token without a nonce is accepted. Many providers issue such tokens in the device flow.
    pub device_flow: bool,
}

impl LoginRules {
    /// Checks how the person logged in.
    ///
    /// # Errors
    ///
    /// Fails if a required method is missing, or if the token has no nonce and must have one.
    pub fn check(&self, claims: &PersonClaims) -> Result<(), LoginFault> {
        if !claims.is_bound && !self.device_flow {
            return Err(LoginFault::DeviceFlowOff);
        }
        match self.required_amr.iter().find(|method| !claims.amr.contains(method)) {
            Some(method) => Err(LoginFault::MethodMissing { method: method.clone() }),
            None => Ok(()),
        }
    }

    /// Returns the known groups of a person, in the order of the configuration.
    pub fn groups_of(&self, claims: &PersonClaims) -> Vec<GroupName> {
        let is_in = |(_, value): &&(GroupName, String)| claims.groups.contains(value);
        self.groups.iter().filter(is_in).map(|(name, _)| name.clone()).collect()
    }

    /// Returns the group for the login of a person: the group that the person names, or else the person's first group. `None`
    /// if the person is in no known group.
    ///
    /// # Errors
    ///
    /// Fails if the person is not in the group that they name, or if Leasehold does not know that group.
    pub fn choose(
        &self,
        claims: &PersonClaims,
        wanted: Option<&str>,
    ) -> Result<Option<GroupName>, LoginFault> {
        let groups = self.groups_of(claims);
        match wanted {
            None => Ok(groups.into_iter().next()),
            Some(wanted) => match groups.into_iter().find(|group| group.as_str() == wanted) {
                Some(group) => Ok(Some(group)),
                None => Err(LoginFault::NotInGroup { group: plain::value(wanted) }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;

    fn rules() -> LoginRules {
        LoginRules {
            groups: vec![
                ("ml-platform".parse().unwrap(), "/ML/Platform".into()),
                ("owners".parse().unwrap(), "owners".into()),
            ],
            life: Duration::from_secs(60),
            required_amr: vec!["mfa".into()],
            device_flow: false,
        }
    }

    fn claims(groups: &[&str]) -> PersonClaims {
        let groups = groups.iter().map(|g| (*g).to_owned()).collect();
        PersonClaims {
            sub: "ada".into(),
            groups,
            amr: vec!["pwd".into(), "mfa".into()],
            issued: Wall(0),
            is_bound: true,
        }
    }

    // A person gets only groups that the provider lists.
    #[test]
    fn a_person_logs_in_as_a_member_of_their_own_groups() {
        let choose = |groups: &[&str], wanted| rules().choose(&claims(groups), wanted);
        let name = |group: &str| Ok(Some(group.parse().unwrap()));
        assert_eq!(choose(&["owners", "/ML/Platform"], None), name("ml-platform"));
        assert_eq!(choose(&["owners", "/ML/Platform"], Some("owners")), name("owners"));
        assert_eq!(
            choose(&["ml-platform", "other"], None),
            Ok(None),
            "the value of the claim counts, not our name"
        );
        for (groups, wanted) in
            [(vec!["owners"], "ml-platform"), (vec!["owners"], "Owners"), (vec![], "owners")]
        {
            assert!(matches!(choose(&groups, Some(wanted)), Err(LoginFault::NotInGroup { .. })), "{wanted}");
        }
    }

    #[test]
    fn a_login_without_what_is_required_is_refused() {
        let good = claims(&[]);
        assert_eq!(rules().check(&good), Ok(()));
        let once = PersonClaims { amr: vec!["pwd".into()], ..good.clone() };
        assert_eq!(rules().check(&once), Err(LoginFault::MethodMissing { method: "mfa".into() }));
        let unbound = PersonClaims { is_bound: false, ..good };
        assert_eq!(rules().check(&unbound), Err(LoginFault::DeviceFlowOff));
        assert_eq!(LoginRules { device_flow: true, ..rules() }.check(&unbound), Ok(()));
    }
}
