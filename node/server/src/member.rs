//! A member on a machine of the caller's choice.

use crate::{admin, config, gateway, machine::Machine};
use anyhow::bail;
use evergate_cluster::{ClusterKey, Replica};
use evergate_ike::record::GatewayId;
use evergate_proto::admin::{AddMemberRequest, RemoveMemberRequest};
use std::path::Path;

/// A running member.
pub struct Member(gateway::Running);

/// Starts a member with the configuration in `text`; relative paths in it count from `directory`. It has no admin socket, and does not watch for changes of the
/// host's addresses and routes.
///
/// # Errors
/// If the configuration is wrong, or for the reasons of `evergate run`.
pub async fn start(
    text: &str,
    directory: &Path,
    key: ClusterKey,
    machine: &dyn Machine,
) -> anyhow::Result<Member> {
    let config = match config::parse(text, directory) {
        Ok(config) => config,
        Err(problems) => bail!("{}", config::render("configuration", &problems)),
    };
    Ok(Member(
        gateway::start_on(&config, key.into(), machine).await?,
    ))
}

impl Member {
    /// The replicated state, as this member sees it.
    pub fn replica(&self) -> &Replica {
        self.0.replica()
    }

    /// Asks the leader to move a gateway to a member.
    ///
    /// # Errors
    /// Why that cannot be, as a sentence.
    pub async fn move_gateway(&self, gateway: GatewayId, member: &str) -> Result<(), String> {
        self.0.move_gateway(gateway, member).await
    }

    /// Has a member let in, which may replace another one: yields the token that it joins with.
    ///
    /// # Errors
    /// Why that cannot be, as a sentence.
    pub async fn add_member(
        &self,
        name: &str,
        address: &str,
        replaces: Option<&str>,
    ) -> Result<String, String> {
        let request = AddMemberRequest {
            name: name.to_owned(),
            address: address.to_owned(),
            replaces: replaces.unwrap_or_default().to_owned(),
            ..AddMemberRequest::default()
        };
        admin::add_member(self.0.node(), request).await
    }

    /// Has a member removed.
    ///
    /// # Errors
    /// Why that cannot be, as a sentence; it may still happen.
    pub async fn remove_member(&self, name: &str) -> Result<(), String> {
        let request = RemoveMemberRequest {
            name: name.to_owned(),
            ..RemoveMemberRequest::default()
        };
        admin::remove_member(self.0.node(), request).await
    }

    /// Returns when the member serves nothing any more, because the log or the data plane failed.
    pub async fn passive(&self) {
        self.0.passive().await;
    }

    /// Stops in an orderly way: its gateways go to other members.
    pub async fn stop(&self) {
        self.0.stop().await;
    }
}
