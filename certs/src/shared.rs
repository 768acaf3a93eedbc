//! The authority that replicas share through a Secret: whoever is first makes it, every change is conditional on the
//! Secret's resourceVersion, and every replica follows it.
//!
//! Each step begins with a read of the Secret from the control plane's store, and a leaf is issued only after such a read:
//! a replica that is cut off from the control plane keeps the leaf it has and cannot sign with an authority that others
//! have left. It knows nothing of where the bundle goes.

use crate::bundle::CaBundle;
use crate::certificates::{Carried, CarriedBundles, UnixClock};
use crate::issue::{Issued, LeafRequest};
use crate::rotation::{RotationAction, RotationPolicy, rotate};
use crate::secret::{SecretData, SharedState};
use crate::{Error, UnixSeconds};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::time::Duration;
use tokio::sync::watch;

/// How often a step is tried again at once when others change the Secret meanwhile.
const CONFLICTS_MAX: usize = 8;
/// How many steps a rotation may take without a pause: drop, create, and to see that there is nothing left to do.
const STEPS_MAX: usize = 8;
/// How long one read or write may take.
const REQUEST: Duration = Duration::from_secs(15);

/// The Secret and what is issued from it.
pub(crate) struct SharedAuthority {
    secrets: Api<Secret>,
    namespace: String,
    name: String,
    request: LeafRequest,
    policy: RotationPolicy,
    carried: watch::Receiver<Carried>,
    clock: UnixClock,
    leaf: Option<Issued>,
    /// What the Secret held when it was last read: if somebody deletes it, it comes back as it was.
    last: Option<SecretData>,
}

/// What is to be published after a step.
pub(crate) struct Step {
    /// Whom to trust.
    pub(crate) bundle: CaBundle,
    /// A new leaf, if there is one.
    pub(crate) leaf: Option<Issued>,
    /// When to look again.
    pub(crate) look_at: UnixSeconds,
}

impl SharedAuthority {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        name: &str,
        request: LeafRequest,
        policy: RotationPolicy,
        carried: watch::Receiver<Carried>,
        clock: UnixClock,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            request,
            policy,
            carried,
            clock,
            leaf: None,
            last: None,
        }
    }

    /// Reads the Secret, takes the steps that are due, and renews the leaf if it is due.
    ///
    /// # Errors
    /// When the Secret cannot be read or written, or holds something else. What was published stays good meanwhile.
    pub(crate) async fn step(&mut self) -> Result<Step, Error> {
        let (state, look_at) = self.settled().await?;
        let now = (self.clock)();
        let bundle = state.bundle()?;
        let Some(authority) = &state.current else {
            return Err(Error::malformed(self.what(), "it holds no authority"));
        };
        let is_good = self
            .leaf
            .as_ref()
            .is_some_and(|leaf| leaf.serves(&self.request, authority.key_id(), now));
        let leaf = if is_good {
            None
        } else {
            Some(authority.issue(&self.request, now)?)
        };
        if let Some(leaf) = &leaf {
            self.leaf = Some(leaf.clone());
        }
        Ok(Step {
            bundle,
            leaf,
            look_at,
        })
    }

    /// The Secret's content when no step is due any more, and when the next one is.
    async fn settled(&mut self) -> Result<(SharedState, UnixSeconds), Error> {
        let (mut conflicts, mut steps) = (0, 0);
        loop {
            let found = within(self.secrets.get_opt(&self.name))
                .await
                .map_err(|e| self.failed(e))?;
            let data = found.as_ref().and_then(|s| s.data.clone()).unwrap_or_default();
            let state = SharedState::decode(&data, &self.what())?;
            let now = (self.clock)();
            let next = state.next_bundle()?;
            let everybody_has_next = CarriedBundles::new(&self.carried.borrow()).all_hold(&next);
            let action = rotate(now, &state.rotation()?, everybody_has_next, self.policy);
            let look_at = match action {
                RotationAction::Keep { look_at } => {
                    self.last = Some(data);
                    return Ok((state, look_at));
                }
                _ => now,
            };
            if conflicts == CONFLICTS_MAX || steps == STEPS_MAX {
                tracing::debug!(look_at, conflicts, steps, "others change the Secret all the time");
                return Err(Error::Contended { secret: self.what() });
            }
            let data = match (&self.last, action) {
                (Some(last), RotationAction::Create) if data.is_empty() => last.clone(),
                _ => state.after(action, now, self.policy)?.encode()?,
            };
            match self.write(found, data).await {
                Ok(()) => {
                    steps += 1;
                    tracing::info!(
                        secret = self.what(),
                        ?action,
                        "the certificate authority moves on"
                    );
                }
                Err(kube::Error::Api(status)) if status.code == 409 => conflicts += 1,
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// Writes what belongs to the state that was read, or nothing.
    async fn write(&self, found: Option<Secret>, data: SecretData) -> Result<(), kube::Error> {
        let params = PostParams {
            field_manager: Some("outrigger-certs".to_owned()),
            ..PostParams::default()
        };
        match found {
            // The object as it was read, its resourceVersion included: a change by others in between is a conflict.
            Some(found) => {
                let secret = Secret {
                    data: Some(data),
                    ..found
                };
                within(self.secrets.replace(&self.name, &params, &secret)).await?;
            }
            None => {
                let secret = Secret {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        namespace: Some(self.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    data: Some(data),
                    type_: Some("Opaque".to_owned()),
                    ..Secret::default()
                };
                within(self.secrets.create(&params, &secret)).await?;
            }
        }
        Ok(())
    }

    fn what(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn failed(&self, source: kube::Error) -> Error {
        Error::Secret {
            secret: self.what(),
            source: Box::new(source),
        }
    }
}

/// A request that does not answer is one that failed.
pub(crate) async fn within<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}
